# SPDX-License-Identifier: Apache-2.0
"""Entry point of the ``semi-pd`` command, outside the ``sglang`` package on purpose.

Importing any ``sglang.x`` first runs ``sglang/__init__.py``, which imports torch and
takes tens of seconds. The command needs only files of ``sglang/semi_pd`` that use
neither. So, in this process alone, the name ``sglang`` is given to an empty module
whose path leads to that folder: ``sglang.semi_pd.slo_algorithm`` and its peers then
import under their usual names while SGLang itself never runs. Finding the folder does
not run it either, for ``find_spec`` of a top-level name only looks.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType


def _sglang_folders() -> Iterator[Path]:
    """Yield the folders that may hold ``semi_pd``: beside this file, then installed."""
    yield Path(__file__).resolve().parent / "sglang"
    spec = importlib.util.find_spec("sglang")
    if spec is not None:
        yield from map(Path, spec.submodule_search_locations or ())


def use_light_namespace() -> None:
    """Make ``sglang.semi_pd`` importable without running ``sglang/__init__.py``.

    Does nothing where ``sglang`` is imported already.
    """
    if "sglang" in sys.modules:
        return
    for folder in _sglang_folders():
        if (folder / "semi_pd" / "cli" / "command_line.py").is_file():
            light = ModuleType("sglang", "Stands in for SGLang in the semi-pd command.")
            light.__path__ = [str(folder)]
            sys.modules["sglang"] = light
            return
    raise ImportError("sglang/semi_pd is neither beside semi_pd_cli.py nor installed")


def main() -> int:
    """Run the command and return its exit status."""
    use_light_namespace()
    command_line = importlib.import_module("sglang.semi_pd.cli.command_line")
    return int(command_line.main())


if __name__ == "__main__":
    sys.exit(main())
