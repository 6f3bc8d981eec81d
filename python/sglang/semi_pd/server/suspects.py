# SPDX-License-Identifier: Apache-2.0
"""Which request brings pair after pair of workers down, and how that is found out.

One that makes its worker fail does so again in the next pair, and takes all that run
beside it with it. So after two deaths in a row without progress in between, those that
saw both are tried in parts: half of them go on, the others wait until each of these has
got further, and so on. A pair that dies in between leaves half as many suspects.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

MOST_FUTILE = 3
"""A request that saw so many pairs die in a row and got no further is given up at the
next such death, if it is the only one."""
CHANCE = 1
"""So many such deaths in a row say nothing of a request."""
LEAST_PROGRESS = 2
"""Tokens. Prefill gives one: a request that brings decode down gets it each time."""
TRIAL_S = 10.0
"""A pair that lives for so long is not brought down by what it has."""


@dataclass(slots=True)
class _Record:
    """How a request fared when pairs died.

    Attributes:
        had: tokens its client had then.
        futile: deaths in a row without progress in between.
    """

    had: int = 0
    futile: int = 0


class Suspects:
    """What is known of the requests in flight, by their ids; nothing of others.

    Args:
        tokens_of: how many tokens a request's client has; None if it has ended.
    """

    def __init__(self, tokens_of: Callable[[str], int | None]) -> None:
        self._tokens_of = tokens_of
        self._records: dict[str, _Record] = {}
        self._on_trial: dict[str, int] = {}
        self._began = 0.0

    def saw_a_death(self, seen: Iterable[str]) -> str | None:
        """These were with a pair that died; the one to give up, if it is clear."""
        stuck = []
        for rid in seen:
            tokens = self._tokens_of(rid)
            if tokens is None:
                continue
            record = self._records.setdefault(rid, _Record())
            if tokens >= record.had + LEAST_PROGRESS:
                record.futile = 0
            record.had = tokens
            record.futile += 1
            if record.futile > CHANCE:
                stuck.append(rid)
        known = self._records.items()
        self._records = {r: one for r, one in known if self._tokens_of(r) is not None}
        if len(stuck) == 1 and self._records[stuck[0]].futile > MOST_FUTILE:
            return stuck[0]
        return None

    def next_of(self, waiting: Sequence[str]) -> list[str]:
        """Which of these go on now: all, or the half of the suspects that has more to
        say for itself."""
        futile = {rid: self._futile(rid) for rid in waiting}
        most = max(futile.values(), default=0)
        chosen = list(waiting)
        if most > CHANCE:
            suspects = [rid for rid in waiting if futile[rid] == most]
            # Most that fail do so at their first token.
            suspects.sort(key=lambda rid: -(self._tokens_of(rid) or 0))
            chosen = suspects[: max(1, len(suspects) // 2)]
        self._on_trial = {rid: self._tokens_of(rid) or 0 for rid in chosen}
        self._began = time.monotonic()
        return chosen

    def are_cleared(self) -> bool:
        """Whether all that were chosen last have gone on, or have ended."""
        if time.monotonic() - self._began > TRIAL_S:
            return True
        now = ((self._tokens_of(rid), had) for rid, had in self._on_trial.items())
        return all(
            tokens is None or tokens >= had + LEAST_PROGRESS for tokens, had in now
        )

    def _futile(self, rid: str) -> int:
        record = self._records.get(rid)
        return record.futile if record is not None else 0
