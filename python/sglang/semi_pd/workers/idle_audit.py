# SPDX-License-Identifier: Apache-2.0
"""An idle worker checks that no page and no row was lost.

Two checks. The block table's own audit: every page and row is free or somebody's, once.
And what only a worker can know: each page it owns is in its lease or in its prefix
cache. What is owned and known to nobody was leaked, if a second look still finds it:
pages change hands before the message arrives that says what is in them, for example
when a worker gives its successor the prefix cache.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from sglang.semi_pd.memory.id_pool import Ids

if TYPE_CHECKING:
    from sglang.semi_pd.memory.block_table import AuditReport, BlockTable

logger = logging.getLogger(__name__)

EVERY_S = 10.0
"""At most so often: an audit reads all of the table, under its lock."""

QUIET_S = 1.0
"""Without work before an audit: who comes after a short pause does not wait for it."""

CONFIRM_S = 2.0
"""Between the two looks; what is under way arrives within milliseconds."""

SHOWN = 8


class IdleAudit:
    """Audits once in each idle period after some work.

    Args:
        known_pages: the pages this worker owns for a reason, or None while messages
            are under way that would explain others.
    """

    def __init__(
        self, table: BlockTable, known_pages: Callable[[], Ids | None]
    ) -> None:
        self._table = table
        self._known_pages = known_pages
        self._work_seen = self._work_done = -1
        self._idle_since = 0.0
        self._last = 0.0
        self._suspects: _Unexplained | None = None

    def when_idle(self, work_done: int) -> AuditReport | None:
        """Audit if there was work since the last time; ``work_done`` counts it."""
        now = time.monotonic()
        if work_done != self._work_done:
            self._work_done, self._idle_since = work_done, now
        if now - self._idle_since < QUIET_S:
            return None
        has_waited = now - self._last >= (CONFIRM_S if self._suspects else EVERY_S)
        if not has_waited or (work_done == self._work_seen and not self._suspects):
            return None
        usage = self._table.usage()
        if usage.rows_free < usage.rows_total:
            self._idle_since = now  # not the other worker: it would wait for the lock
            return None
        self._last = now
        self._work_seen = work_done
        return self.run()

    def run(self) -> AuditReport:
        """Audit now; what is wrong is logged and counted in the table."""
        report = self._table.audit(self._leaks())
        for violation in report.violations:
            logger.error("Memory audit: %s", violation)
        return report

    def _leaks(self) -> list[str]:
        """What was without an explanation at the last look, and still is."""
        found, before = self._unexplained(), self._suspects
        confirmed = (found & before).described() if found and before else []
        self._suspects = None if confirmed else found
        return confirmed

    def _unexplained(self) -> _Unexplained | None:
        known, lease = self._known_pages(), self._table.lease
        if known is None or lease is None:
            return None
        is_owned = self._table.page_owners() == lease.slot
        # Marked, not sorted: who comes just now waits for it, and a cache is large.
        is_known = np.zeros(len(is_owned), bool)
        is_known[known] = True
        found = _Unexplained(
            lease.role.value,
            np.flatnonzero(is_owned & ~is_known),
            np.flatnonzero(is_known & ~is_owned),
        )
        return found if len(found.unused) or len(found.foreign) else None


class _Unexplained(NamedTuple):
    """Pages that are owned and not used by a worker, and the other way round."""

    role: str
    unused: Ids
    foreign: Ids

    def __and__(self, other: _Unexplained) -> _Unexplained:
        return _Unexplained(
            self.role,
            np.intersect1d(self.unused, other.unused),
            np.intersect1d(self.foreign, other.foreign),
        )

    def described(self) -> list[str]:
        """A line for each kind."""
        named = {
            "owned and used by nobody": self.unused,
            "used and not owned": self.foreign,
        }
        return [
            f"{self.role}: {len(pages)} pages are {name}: {pages[:SHOWN].tolist()}"
            for name, pages in named.items()
            if len(pages)
        ]
