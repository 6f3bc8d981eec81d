# SPDX-License-Identifier: Apache-2.0
"""Replaces a pair of which a worker died or hangs; requests go on over the kept KV."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from sglang.semi_pd.errors import SemiPDError
from sglang.semi_pd.server.dead_slots import DeadSlots
from sglang.semi_pd.server.worker import WorkerPair, wait_ready

if TYPE_CHECKING:
    from sglang.semi_pd.server.switchboard import Switchboard
    from sglang.semi_pd.server.worker_group import WorkerGroup
    from sglang.semi_pd.sm_allocation import SMAllocation

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 300.0
ATTEMPTS = 3


class Recovery:
    """Replaces pairs, one after the other; on the supervisor's thread.

    Attributes:
        deaths: how often a pair had to be replaced.
        is_under_way: nobody serves; what arrives is kept.
        last_death: what happened last, and ``last_death_at`` when, as ``time.time()``.
        last_took_s: seconds until the new pair served.

    Args:
        allocation: the split in force.
    """

    def __init__(
        self,
        group: WorkerGroup,
        switchboard: Switchboard,
        allocation: Callable[[], SMAllocation],
    ) -> None:
        self._group, self._switchboard = group, switchboard
        self._allocation = allocation
        sockets = [worker.spec.resident_socket for worker in group.residents]
        self._dead_slots = DeadSlots.of_residents(sockets)
        self._fallen: list[WorkerPair] = []
        self._had_begun = True
        self._began = 0.0
        self._is_cut_short = False
        self.deaths = 0
        self.is_under_way = False
        self.last_death = ""
        self.last_death_at: float | None = None
        self.last_took_s: float | None = None

    def begin(self, why: str, at: float) -> None:
        """End what is left of the pair, and of its standby."""
        self._began = time.monotonic()
        self.is_under_way = True
        self.deaths += 1
        self.last_death, self.last_death_at = why, at
        logger.error("%s. Replacing both workers; requests go on after it", why)
        self._switchboard.hold()
        group = self._group
        self._fallen = [group.pair, *filter(None, [group.standby])]
        for pair in self._fallen:
            pair.kill()
        group.standby = None
        # Now: no process of theirs changes the block table any more, none of the next
        # does yet.
        generations = [pair.generation for pair in self._fallen]
        self._had_begun = self._dead_slots.had_begun(generations)
        self._dead_slots.join(generations)

    def replace_pair(self) -> None:
        """Bring a new pair into service.

        Raises:
            SemiPDError: three pairs in a row did not start.
            TimeoutError: the detokenizer does not tell what clients have.
        """
        group, fallen = self._group, self._fallen
        group.partition.recover()
        self._switchboard.drain(frozenset().union(*(pair.pids for pair in fallen)))
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._start_pair()
                break
            except SemiPDError as error:
                if self._is_cut_short:
                    return
                if attempt == ATTEMPTS:
                    raise
                logger.error("The new workers did not start: %s", error)
                self._bury()
        self._switchboard.release_to(group.pair.generation, had_begun=self._had_begun)
        self.is_under_way = False
        self.last_took_s = time.monotonic() - self._began
        logger.info("Serving again after %.1f s", self.last_took_s)

    def cut_short(self) -> None:
        """From another thread: the server ends, nobody needs the new pair."""
        self._is_cut_short = True
        if self.is_under_way:
            for worker in self._group.pair.workers:
                if not worker.is_closed:
                    worker.process.kill()

    def _start_pair(self) -> None:
        group = self._group
        group.pair = group.launch_pair(self._allocation())
        self._switchboard.prepare(group.pair.generation)
        wait_ready(group.pair.workers, START_TIMEOUT_S)
        group.partition.verify([worker.pid for worker in group.pair.workers])

    def _bury(self) -> None:
        """The pair that did not start, if it came into being."""
        pair = self._group.pair
        if pair not in self._fallen:
            self._fallen.append(pair)
            pair.kill()
            self._switchboard.discard(pair.generation)
