# SPDX-License-Identifier: Apache-2.0
"""A command line as argparse would read it, before there is a parser."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sglang.semi_pd.errors import ConfigError
from sglang.semi_pd.launch import flag_rules

OUR_FLAGS = frozenset(
    flag_rules.flag(field)
    for field in (
        *flag_rules.SWITCHES,
        *flag_rules.NUMBERS,
        *flag_rules.SHARES,
        "enable_sm_overlap",
        "sm_partition_backend",
        "worker_start_method",
        "slo_mode",
        "slo_calibration",
        "slo_decision_log",
    )
)
"""Every flag of Semi-PD."""


class CommandLine:
    """Flags as typed, abbreviations and aliases resolved, the last of each kept.

    Args:
        arguments: what follows the command.
        spellings: every flag of SGLang, with the one that stands for it; empty if that
            could not be found out.
    """

    def __init__(self, arguments: Sequence[str], spellings: Mapping[str, str]) -> None:
        self.flags_are_known = bool(spellings)
        self.known = spellings.keys() | OUR_FLAGS
        self._spellings = spellings
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
        if name not in self.known:
            candidates = [flag for flag in self.known if flag.startswith(name)]
            if len(candidates) != 1:
                return None
            name = candidates[0]
        return self._spellings.get(name, name)

    @property
    def turns_semi_pd_on(self) -> bool:
        """Whether one of Semi-PD's switches was given."""
        return any(self.has(flag_rules.flag(switch)) for switch in flag_rules.SWITCHES)

    @property
    def may_be_upstreams(self) -> bool:
        """Whether the only switch is one that SGLang has too, for other models."""
        given = [one for one in flag_rules.SWITCHES if self.has(flag_rules.flag(one))]
        return given == ["enable_unified_memory"]

    @property
    def model_path(self) -> str:
        """The model as typed, empty if it was not given."""
        return self.value("--model-path", "--model") or self.positional

    def has(self, flag: str) -> bool:
        """Whether the flag was given."""
        return flag in self._values

    def decides(self, *fields: str) -> bool:
        """Whether these are the server's last word, given or not: no file has one."""
        given = (self.has(flag_rules.flag(field)) for field in fields)
        return not self.has("--config") or all(given)

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


def _is_value(text: str) -> bool:
    return not text.startswith("-") or bool(
        re.fullmatch(r"-(\d[\d.e+-]*|inf|nan)", text)
    )
