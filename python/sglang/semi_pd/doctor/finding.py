# SPDX-License-Identifier: Apache-2.0
"""What one check found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from sglang.semi_pd.errors import SemiPDError


class State(Enum):
    """How a check ended; the value is its mark."""

    OK = "✓"
    NOTE = "!"
    FAILED = "✗"
    SKIPPED = "–"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; ``mend`` says what to do about it."""

    check: str
    state: State
    said: str
    mend: str = ""


def ok(check: str, said: str) -> Finding:
    """All is well."""
    return Finding(check, State.OK, said)


def note(check: str, said: str, mend: str = "") -> Finding:
    """A server starts, but somebody should know this."""
    return Finding(check, State.NOTE, said, mend)


def failed(check: str, said: str, mend: str) -> Finding:
    """A server does not start, or not as asked for."""
    return Finding(check, State.FAILED, said, mend)


def skipped(check: str, said: str) -> Finding:
    """Does not matter on this host."""
    return Finding(check, State.SKIPPED, said)


def by_rule(check: str, rule: Callable[[], object], said: str = "") -> Finding:
    """The outcome of a rule that raises; ``said`` or what it returns if it does not."""
    try:
        result = rule()
    except SemiPDError as error:
        return failed(check, f"{error.what}: {error.why}", error.mend)
    return ok(check, said or str(result))
