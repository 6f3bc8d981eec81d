# SPDX-License-Identifier: Apache-2.0
"""What SGLang's source text says, read without importing SGLang."""

from __future__ import annotations

import re
from importlib.machinery import PathFinder

from sglang.semi_pd.launch import flag_rules

# `sglang serve` takes one flag more than ServerArgs has; argparse adds the help.
_COMMAND_FLAGS = frozenset({"--model-type", "--help"})
_FEWEST_FLAGS = 200
_FIELD = re.compile(r"^    ([a-z][a-z0-9_]*): A\[", re.MULTILINE)
_LITERAL = re.compile(r"[\"'](--[a-zA-Z0-9][\w-]*)[\"']")
_VERSION = re.compile(r"^__version__ = version = '([^']+)'", re.MULTILINE)


def known_flags(sglang_root: str) -> frozenset[str]:
    """Every flag in SGLang's source; empty if the scan did not work."""
    try:
        with open(f"{sglang_root}/srt/server_args.py", encoding="utf-8") as file:
            text = file.read()
    except OSError:
        return frozenset()
    pieces = _FIELD.split(text)
    flags = set(_LITERAL.findall(text))
    for field, definition in zip(pieces[1::2], pieces[2::2], strict=True):
        flags.update(_field_flags(field, definition.partition("\n    def ")[0]))
    return frozenset(flags | _COMMAND_FLAGS if len(flags) >= _FEWEST_FLAGS else ())


def _field_flags(field: str, definition: str) -> list[str]:
    """The flags SGLang derives from the name of one field of ``ServerArgs``."""
    if "no_cli=True" in definition or "cli_name=" in definition:
        return []
    flag = flag_rules.flag(field)
    if "BooleanOptionalAction" in definition:
        return [flag, flag.replace("--", "--no-", 1)]
    return [flag]


def version(sglang_root: str) -> str:
    """SGLang's version without importing it, empty if it cannot be told."""
    try:
        with open(f"{sglang_root}/_version.py", encoding="utf-8") as file:
            found = _VERSION.search(file.read())
    except OSError:
        return ""
    return found.group(1) if found else ""


def root() -> str:
    """Folder of the installed SGLang, empty if there is none."""
    spec = PathFinder.find_spec("sglang")
    locations = spec.submodule_search_locations if spec else None
    return next(iter(locations), "") if locations else ""
