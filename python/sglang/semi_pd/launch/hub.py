# SPDX-License-Identifier: Apache-2.0
"""Whether a Hugging Face hub has a model, asked in one short request.

Only for a name that is not in the local cache: a typing mistake, a gated model or a
missing network would otherwise be told after tens of seconds of imports.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglang.semi_pd.errors import ConfigError

if TYPE_CHECKING:
    from email.message import Message

TIMEOUT_S = 5.0
_TRUE = ("1", "true", "yes", "on")
_DENIED = (401, 403)
_NOT_FOUND = 404
_NO_SUCH = ("RepoNotFound", "")


def check(name: str, environ: Mapping[str, str]) -> str:
    """Refuse a name that cannot be fetched; says what will be, and to where.

    Empty if the model is in the cache already, or another hub is to be asked.

    Raises:
        ConfigError: the hub does not give it, or cannot be asked.
    """
    if _is_true(environ, "SGLANG_USE_MODELSCOPE"):
        return ""
    cache = cache_directory(environ)
    if any(cache.glob(f"models--{name.replace('/', '--')}/snapshots/*/config.json")):
        return ""
    if _is_true(environ, "HF_HUB_OFFLINE") or _is_true(environ, "TRANSFORMERS_OFFLINE"):
        raise ConfigError(
            f"--model-path {name} is refused",
            why=f"it is not in {cache}, and HF_HUB_OFFLINE forbids to fetch it",
            mend=f"unset HF_HUB_OFFLINE, or copy the model there (hf download {name})",
        )
    endpoint = environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
    _ask(name, endpoint, environ)
    free_gib = shutil.disk_usage(_existing(cache)).free / 2**30
    return (
        f"fetching {name} from {endpoint} into {cache}, {free_gib:.0f} GiB free there"
    )


def cache_directory(environ: Mapping[str, str]) -> Path:
    """Where huggingface_hub keeps what it has fetched."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environ.get(variable):
            return Path(environ[variable])
    return _home(environ) / "hub"


def _home(environ: Mapping[str, str]) -> Path:
    caches = environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(environ.get("HF_HOME") or f"{caches}/huggingface")


def _ask(name: str, endpoint: str, environ: Mapping[str, str]) -> None:
    from urllib.error import HTTPError, URLError
    from urllib.request import HTTPRedirectHandler, Request, build_opener

    class NoRedirect(HTTPRedirectHandler):
        """A redirect is a yes; following it would carry the token elsewhere."""

        def redirect_request(self, *_: Any) -> None:
            return None

    request = Request(f"{endpoint}/{name}/resolve/main/config.json", method="HEAD")
    token = _token(environ)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        build_opener(NoRedirect).open(request, timeout=TIMEOUT_S).close()
    except HTTPError as error:
        _judge(name, endpoint, error.code, error.headers)
    except (URLError, OSError) as error:
        raise ConfigError(
            f"--model-path {name} is refused",
            why=f"there is no such folder, and {endpoint} cannot be reached "
            f"({getattr(error, 'reason', error)})",
            mend="check the name and the network, or set HF_ENDPOINT to a mirror",
        ) from None


def _judge(name: str, endpoint: str, code: int, headers: Message) -> None:
    reason = headers.get("X-Error-Code", "")
    if code in _DENIED:
        raise ConfigError(
            f"--model-path {name} is refused",
            why=f"{endpoint} answers {code}: there is no such model, or it is gated",
            mend="check the name; for a gated model accept its terms there and set "
            "HF_TOKEN",
        )
    if code == _NOT_FOUND and reason in _NO_SUCH:
        raise ConfigError(
            f"--model-path {name} is refused",
            why=f"there is no such folder, and {endpoint} has no such model",
            mend="check the name; for ModelScope set SGLANG_USE_MODELSCOPE=1",
        )


def _token(environ: Mapping[str, str]) -> str:
    if environ.get("HF_TOKEN"):
        return environ["HF_TOKEN"]
    path = environ.get("HF_TOKEN_PATH") or str(_home(environ) / "token")
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return ""


def _existing(path: Path) -> Path:
    """The path itself or its nearest folder that exists."""
    return next(place for place in (path, *path.parents) if place.exists())


def _is_true(environ: Mapping[str, str], variable: str) -> bool:
    return environ.get(variable, "").lower() in _TRUE
