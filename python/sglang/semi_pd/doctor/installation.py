# SPDX-License-Identifier: Apache-2.0
"""Python, the packages, and whether Semi-PD reaches SGLang: nothing is imported."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Mapping
from importlib.machinery import PathFinder
from pathlib import Path

from sglang.semi_pd.doctor import hook_targets
from sglang.semi_pd.doctor.finding import Finding, by_rule, failed, ok
from sglang.semi_pd.errors import UpstreamMismatchError
from sglang.semi_pd.launch import flag_rules, upstream_source

DISTRIBUTION = "sglang-semi-pd"
PYTHONS = ((3, 10), (3, 13))
"""The first version that is supported and the first that is not."""
_TORCH_CUDA = re.compile(r"^cuda\b.*= *'([\d.]+)'", re.MULTILINE)
_GROUPS = ("sglang.srt.plugins", "sglang.srt.platforms")


def examine(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Everything about the installation."""
    yield _python()
    yield _sglang()
    yield _torch()
    yield _overlay()
    yield _entry_points()
    yield by_rule("hooks", _check_hooks)
    yield by_rule(
        "environment",
        lambda: flag_rules.check_environment(environ),
        "no variable stands in the way",
    )


def torch_cuda() -> str:
    """The CUDA version that torch is built for, empty if for none or not there."""
    spec = PathFinder.find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    version = Path(spec.origin).parent / "version.py"
    found = _TORCH_CUDA.search(version.read_text()) if version.is_file() else None
    return found.group(1) if found else ""


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if PYTHONS[0] <= sys.version_info[:2] < PYTHONS[1]:
        return ok("python", version)
    return failed("python", f"{version} is not supported", "use Python 3.10 to 3.12")


def _sglang() -> Finding:
    def check() -> str:
        version = upstream_source.version(upstream_source.root())
        flag_rules.check_version(version)
        return version

    return by_rule("sglang", check)


def _torch() -> Finding:
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return failed(
            "torch",
            "not installed",
            f"pip install sglang=={flag_rules.TESTED_SGLANG}, which brings it",
        )
    return ok("torch", version)


def _overlay() -> Finding:
    """The ``.pth`` file of the package was read, or its folder is on the path."""
    try:
        version = importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return failed(
            "semi-pd",
            "this Python does not have the package",
            f"in the clone of {DISTRIBUTION}: {sys.executable} -m pip install .",
        )
    finders = [getattr(finder, "__name__", "") for finder in sys.meta_path]
    if "SemiPDFinder" not in finders:
        return failed(
            "semi-pd",
            f"{version}, but its finder is not active: the .pth file was not read",
            f"start Python without -S and -I; or in the clone of {DISTRIBUTION}: "
            f"{sys.executable} -m pip install --force-reinstall --no-deps .",
        )
    return ok("semi-pd", version)


def _entry_points() -> Finding:
    """SGLang finds the plugins by these; an install of older code keeps old ones."""
    found = [
        point
        for group in _GROUPS
        for point in importlib.metadata.entry_points(group=group)
        if point.module.startswith("sglang.semi_pd.")
    ]
    package = Path(__file__).resolve().parents[1]
    stale = [
        point.value
        for point in found
        if not _module_file(package, point.module).is_file()
    ]
    mend = (
        f"in the clone of {DISTRIBUTION}: {sys.executable} -m pip install "
        "--force-reinstall --no-deps ."
    )
    if stale:
        return failed("plugins", f"there is no {stale[0]}: an old install", mend)
    if len(found) < len(_GROUPS):
        names = ", ".join(point.name for point in found) or "none"
        return failed("plugins", f"SGLang would find {names} of two", mend)
    return ok("plugins", f"SGLang finds {' and '.join(point.name for point in found)}")


def _module_file(package: Path, module: str) -> Path:
    relative = module.removeprefix("sglang.semi_pd.").replace(".", os.sep)
    return package / f"{relative}.py"


def _check_hooks() -> str:
    targets = hook_targets.ours(Path(__file__).resolve().parents[1])
    missing = hook_targets.missing(targets, upstream_source.root())
    if missing:
        raise UpstreamMismatchError(
            f"{len(missing)} of {len(targets)} hooks do not fit this SGLang",
            why=f"it has no {missing[0]}",
            mend=f"pip install --force-reinstall sglang=={flag_rules.TESTED_SGLANG}",
        )
    return f"all {len(targets)} names that are hooked exist in this SGLang"
