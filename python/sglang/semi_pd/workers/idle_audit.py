# SPDX-License-Identifier: Apache-2.0
"""An idle worker checks that no page and no row was lost.

Two checks. The block table's own audit: every page and row is free or somebody's, once.
And what only a worker can know: each page it owns is in its lease or in its prefix
cache. What is owned and known to nobody was leaked.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from sglang.semi_pd.memory.id_pool import Ids

if TYPE_CHECKING:
    from sglang.semi_pd.memory.block_table import AuditReport, BlockTable

logger = logging.getLogger(__name__)

EVERY_S = 10.0
"""At most so often: an audit reads all of the table, under its lock."""

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
        self._work_seen = -1
        self._last = 0.0

    def when_idle(self, work_done: int) -> AuditReport | None:
        """Audit if there was work since the last time; ``work_done`` counts it."""
        now = time.monotonic()
        if work_done == self._work_seen or now - self._last < EVERY_S:
            return None
        usage = self._table.usage()
        if usage.rows_free < usage.rows_total:
            return None  # the other worker is busy: it would wait for the lock
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
        known = self._known_pages()
        if known is None or self._table.lease is None:
            return []
        owned = np.flatnonzero(self._table.page_owners() == self._table.lease.slot)
        found = []
        for name, pages in (
            ("owned and used by nobody", np.setdiff1d(owned, known)),
            ("used and not owned", np.setdiff1d(known, owned)),
        ):
            if len(pages):
                role = self._table.lease.role.value
                shown = pages[:SHOWN].tolist()
                found.append(f"{role}: {len(pages)} pages are {name}: {shown}")
        return found
