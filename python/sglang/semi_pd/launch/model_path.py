# SPDX-License-Identifier: Apache-2.0
"""Whether a model can be had: a folder that holds one, or a name that a hub knows."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from sglang.semi_pd.errors import ConfigError
from sglang.semi_pd.launch import hub

_CONFIGS = ("config.json", "params.json")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
"""In the order in which SGLang looks for them: it loads those of one kind."""
_INDEX = "model.safetensors.index.json"
_WHOLE_AGAIN = "consolidated"
"""So begin the names of files that hold all weights a second time."""
_HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")
_POINTER = b"version https://git-lfs"


def check(path: str, environ: Mapping[str, str], *, needs_weights: bool) -> str:
    """Refuse a model that cannot be loaded; says what is to be fetched, if anything.

    Args:
        path: what the user gave; empty if nothing.
        needs_weights: whether the folder must hold them (not for dummy weights).

    Raises:
        ConfigError: there is no such folder or name, or it lacks something.
    """
    if not path or "://" in path or path.endswith(".gguf"):
        return ""
    if os.path.isdir(path):
        _check_folder(path, needs_weights=needs_weights)
        return ""
    if not _HUB_NAME.fullmatch(path):
        raise ConfigError(
            f"--model-path {path} is refused",
            why="there is no such folder",
            mend="give an existing folder, or a Hugging Face name such as "
            "meta-llama/Llama-3.1-8B-Instruct",
        )
    return hub.check(path, environ)


def weight_bytes(path: str) -> int:
    """Size on disk of what is loaded from a folder; 0 if it is no folder."""
    return sum(file.stat().st_size for file in _weight_files(path))


def _check_folder(path: str, *, needs_weights: bool) -> None:
    if not any(os.path.isfile(os.path.join(path, name)) for name in _CONFIGS):
        raise ConfigError(
            f"--model-path {path} is refused",
            why="the folder has no config.json",
            mend="give the folder that holds the model's config.json and weights",
        )
    if not needs_weights:
        return
    files = _weight_files(path)
    if not files:
        raise ConfigError(
            f"--model-path {path} is refused",
            why="the folder has no weights (*.safetensors)",
            mend="finish the download, or give --load-format dummy for random weights",
        )
    for file in files:
        with file.open("rb") as start:
            if start.read(len(_POINTER)) == _POINTER:
                raise ConfigError(
                    f"--model-path {path} is refused",
                    why=f"{file.name} is a pointer of Git LFS, not the weights",
                    mend=f"run git -C {path} lfs pull",
                )


def _weight_files(path: str) -> list[Path]:
    """The files of a folder that SGLang loads: those that an index names, if any."""
    every = list(Path(path).iterdir()) if os.path.isdir(path) else []
    kinds = ([file for file in every if file.suffix == kind] for kind in _WEIGHTS)
    files = next(filter(None, kinds), [])
    indexed = _indexed(path)
    if indexed:
        return [file for file in files if file.name in indexed] or files
    once = [file for file in files if not file.name.startswith(_WHOLE_AGAIN)]
    return once or files


def _indexed(path: str) -> set[str]:
    try:
        with open(os.path.join(path, _INDEX), encoding="utf-8") as file:
            return set(json.load(file)["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()  # none, or one that SGLang's own loading will speak of
