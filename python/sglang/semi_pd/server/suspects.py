# SPDX-License-Identifier: Apache-2.0
"""Which request brings pair after pair of workers down, and how that is found out.

One that makes its worker fail does so again in the next pair, and takes all that run
beside it with it. So after two deaths in a row without progress in between, those that
saw both are tried in parts: half of them go on, the others wait until each of these has
got further, and so on. Who saw most goes last, in the end alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

MOST_ALONE = 4
"""After so many deaths with nobody else to suspect a request is given up. A few could
be chance: workers are also killed from outside."""
CHANCE = 1
"""So many deaths in a row without progress say nothing of a request."""
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
        alone: of these, since several were last suspected together, those where it was
            the only one.
    """

    had: int = 0
    futile: int = 0
    alone: int = 0


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
                record.futile = record.alone = 0
            record.had = tokens
            record.futile += 1
            if record.futile > CHANCE:
                stuck.append(rid)
        known = self._records.items()
        self._records = {r: one for r, one in known if self._tokens_of(r) is not None}
        if len(stuck) > 1:
            for record in self._records.values():
                record.alone = 0
        elif stuck:
            self._records[stuck[0]].alone += 1
            if self._records[stuck[0]].alone >= MOST_ALONE:
                return stuck[0]
        return None

    def next_of(self, waiting: Sequence[str]) -> list[str]:
        """Which of these go on now: all that are beyond suspicion, else half of those
        that saw the fewest deaths."""
        chosen = [rid for rid in waiting if self._futile(rid) <= CHANCE]
        if waiting and not chosen:
            least = min(map(self._futile, waiting))
            group = [rid for rid in waiting if self._futile(rid) == least]
            group.sort(key=self._had, reverse=True)  # most fail at their first token
            chosen = group[: max(1, len(group) // 2)]
        self._on_trial = {rid: self._had(rid) for rid in chosen}
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

    def _had(self, rid: str) -> int:
        return self._tokens_of(rid) or 0

    def _futile(self, rid: str) -> int:
        record = self._records.get(rid)
        return record.futile if record is not None else 0
