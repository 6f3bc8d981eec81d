# SPDX-License-Identifier: Apache-2.0
"""Judge a server's command line before anything heavy is imported.

Importing SGLang takes tens of seconds; a mistyped flag should not. The import finder
runs ``main`` in the launching process only, when SGLang is first imported there. It
knows SGLang's flags from a scan of SGLang's source text, nothing is imported for it.
What can only be known later is checked by ``config``.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Sequence
from importlib.machinery import PathFinder
from typing import Any

from sglang.semi_pd.errors import ConfigError, SemiPDError
from sglang.semi_pd.launch import flag_rules, ports
from sglang.semi_pd.launch.refusal import refuse
from sglang.semi_pd.server import fork_server

OUR_FLAGS = frozenset(
    flag_rules.flag(field)
    for field in (
        *flag_rules.SWITCHES,
        *flag_rules.NUMBERS,
        *flag_rules.SHARES,
        "enable_sm_overlap",
        "sm_partition_backend",
    )
)
# `sglang serve` takes one flag more than ServerArgs has; argparse adds the help.
_COMMAND_FLAGS = frozenset({"--model-type", "--help"})
_FEWEST_FLAGS = 200
_FIELD = re.compile(r"^    ([a-z][a-z0-9_]*): A\[", re.MULTILINE)
_LITERAL = re.compile(r"[\"'](--[a-zA-Z0-9][\w-]*)[\"']")
_NEGATIVE = re.compile(r"-(\d+|\d*\.\d+)")
_VERSION = re.compile(r"^__version__ = version = '([^']+)'", re.MULTILINE)


class CommandLine:
    """Flags as typed, abbreviations expanded, the last of each kept.

    Args:
        arguments: what follows the command.
        known: every flag there is; empty if that could not be found out.
    """

    def __init__(self, arguments: Sequence[str], known: Collection[str]) -> None:
        self._known = frozenset(known) | OUR_FLAGS
        self._values: dict[str, str | None] = {}
        self.unknown: list[str] = []
        self.positional = (
            arguments[0] if arguments[:1] and _is_value(arguments[0]) else ""
        )
        for place, argument in enumerate(arguments):
            if argument.startswith("--") and len(argument) > 2:
                self._take(argument, arguments[place + 1 : place + 2])

    def _take(self, argument: str, following: Sequence[str]) -> None:
        name, separator, value = argument.partition("=")
        flag = self._expand(name)
        if flag is None:
            self.unknown.append(name)
        elif separator:
            self._values[flag] = value
        else:
            is_value = bool(following) and _is_value(following[0])
            self._values[flag] = following[0] if is_value else None

    def _expand(self, name: str) -> str | None:
        """The flag ``name`` stands for, as argparse would read it."""
        if name in self._known:
            return name
        candidates = [flag for flag in self._known if flag.startswith(name)]
        return candidates[0] if len(candidates) == 1 else None

    def has(self, flag: str) -> bool:
        """Whether the flag was given."""
        return flag in self._values

    def value(self, *flags: str) -> str | None:
        """What was given for the first of these flags that has a value."""
        for flag in flags:
            if self._values.get(flag) is not None:
                return self._values[flag]
        return None

    def number(self, field: str, kind: type, default: Any) -> Any:
        """The value of a numeric flag; ``default`` if it was not given."""
        flag = flag_rules.flag(field)
        if not self.has(flag):
            return default
        text = self.value(flag)
        try:
            return kind(text)
        except (TypeError, ValueError):
            raise ConfigError(
                f"{flag} {text or ''}".rstrip() + " is refused",
                why=f"it needs a {'whole ' if kind is int else ''}number",
                mend=f"use for example {flag} {default}",
            ) from None


def main(arguments: Sequence[str]) -> None:
    """Check the command line of a server with Semi-PD flags, then ``begin``.

    Ends the process with one line and exit code 2 if the server cannot start.
    """
    if {"-h", "--help"} & set(arguments):
        return
    root = _sglang_root()
    known = known_flags(root)
    line = CommandLine(arguments, known)
    if not any(line.has(flag_rules.flag(switch)) for switch in flag_rules.SWITCHES):
        return
    try:
        check(line, version=sglang_version(root), flags_are_known=bool(known))
    except SemiPDError as error:
        refuse(error)
    begin(arguments)


def begin(arguments: Sequence[str]) -> None:
    """The command line is good: start what may start before the imports.

    The fork server imports SGLang while this process does the same.
    """
    fork_server.start()


def check(line: CommandLine, *, version: str, flags_are_known: bool) -> None:
    """Raise ``ConfigError`` for the first thing that keeps the server from starting."""
    flag_rules.check_version(version)
    flag_rules.check_environment(os.environ)
    if flags_are_known:
        check_spelling(line)
    check_own_flags(line)
    check_limits(line)
    if not line.has("--config"):
        check_model_path(line.value("--model-path", "--model") or line.positional)
    check_port(line)


def check_spelling(line: CommandLine) -> None:
    """Refuse a flag that neither SGLang nor Semi-PD has."""
    for name in line.unknown:
        near = difflib.get_close_matches(name, sorted(line._known), n=1)
        raise ConfigError(
            f"{name} is refused",
            why="there is no such flag",
            mend=f"did you mean {near[0]}?" if near else "see --help",
        )


def check_own_flags(line: CommandLine) -> None:
    """Refuse values and combinations that Semi-PD's flags cannot have."""
    flag_rules.check_numbers(
        {
            field: line.number(field, kind, default)
            for field, (kind, default, _) in flag_rules.NUMBERS.items()
        }
    )
    prefill, decode = (
        line.number(field, int, default) for field, default in flag_rules.SHARES.items()
    )
    flag_rules.check_split(
        prefill, decode, overlap_allowed=line.has("--enable-sm-overlap")
    )
    flag_rules.check_modes(
        semi_pd=line.has("--enable-semi-pd"),
        coordinator=line.has("--enable-semi-pd-coordinator"),
        slo_aware=line.has("--enable-slo-aware"),
    )
    flag_rules.check_choice(
        "log_level",
        (line.value("--log-level") or "info").lower(),
        flag_rules.LOG_LEVELS,
    )
    flag_rules.check_choice(
        "sm_partition_backend",
        line.value("--sm-partition-backend") or "auto",
        flag_rules.PARTITION_BACKENDS,
    )


def check_limits(line: CommandLine) -> None:
    """Refuse what SGLang can do and Semi-PD cannot yet."""
    for limit in flag_rules.LIMITS:
        flag = flag_rules.flag(limit.field)
        value = True if limit.is_switch and line.has(flag) else line.value(flag)
        if value is not None and not limit.accepts(value):
            raise limit.error(value)


def check_model_path(path: str) -> None:
    """Refuse a path that is neither a model's folder nor the name of one on a hub."""
    if not path or "://" in path or path.endswith(".gguf"):
        return
    if os.path.isdir(path):
        if not any(
            os.path.isfile(os.path.join(path, name))
            for name in ("config.json", "params.json")
        ):
            raise ConfigError(
                f"--model-path {path} is refused",
                why="the folder has no config.json",
                mend="give the folder that holds the model's config.json and weights",
            )
    elif not re.fullmatch(r"[\w.-]+/[\w.-]+", path) or path.startswith("."):
        raise ConfigError(
            f"--model-path {path} is refused",
            why="there is no such folder",
            mend="give an existing folder, or a Hugging Face name such as "
            "meta-llama/Llama-3.1-8B-Instruct",
        )


def check_port(line: CommandLine) -> None:
    """Refuse a port that somebody else listens on."""
    host = line.value("--host") or "127.0.0.1"
    ports.require_free(host, line.number("port", int, 30000))


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


def sglang_version(sglang_root: str) -> str:
    """SGLang's version without importing it, empty if it cannot be told."""
    try:
        with open(f"{sglang_root}/_version.py", encoding="utf-8") as file:
            found = _VERSION.search(file.read())
    except OSError:
        return ""
    return found.group(1) if found else ""


def _sglang_root() -> str:
    spec = PathFinder.find_spec("sglang")
    locations = spec.submodule_search_locations if spec else None
    return next(iter(locations), "") if locations else ""


def _is_value(text: str) -> bool:
    return not text.startswith("-") or bool(
        re.fullmatch(r"-(\d[\d.e+-]*|inf|nan)", text)
    )
