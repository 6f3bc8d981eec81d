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
_NAMES = re.compile(r"(?:aliases=\[|cli_name=)([^\],]*[\],])")
_VERSION = re.compile(r"^__version__ = version = '([^']+)'", re.MULTILINE)


def spellings(sglang_root: str) -> dict[str, str]:
    """Every flag in SGLang's source, with the one that its field's name gives.

    ``--data-parallel-size`` is ``--dp-size``. Empty if the scan did not work.
    """
    try:
        with open(f"{sglang_root}/srt/server_args.py", encoding="utf-8") as file:
            text = file.read()
    except OSError:
        return {}
    pieces = _FIELD.split(text)
    found = {name: name for name in (*_LITERAL.findall(text), *_COMMAND_FLAGS)}
    for field, definition in zip(pieces[1::2], pieces[2::2], strict=True):
        found.update(_field_flags(field, definition.partition("\n    def ")[0]))
    return found if len(found) >= _FEWEST_FLAGS else {}


def _field_flags(field: str, definition: str) -> dict[str, str]:
    """The flags of one field of ``ServerArgs``: its own, derived or given, and more."""
    if "no_cli=True" in definition:
        return {}
    flag = flag_rules.flag(field)
    names = _LITERAL.findall("".join(_NAMES.findall(definition)))
    if "cli_name=" not in definition:
        names.append(flag)
    found = dict.fromkeys(names, flag)
    if "BooleanOptionalAction" in definition:
        negative = flag.replace("--", "--no-", 1)
        found[negative] = negative
    return found


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
