# SPDX-License-Identifier: Apache-2.0
"""Decode runs short of memory: prefill evicts from its prefix cache first.

Decode may not evict, the tree is prefill's. So it asks, early where it can, and waits
for the answer before it puts a request aside. Prefill answers in the block table once
the pages are free, at the latest when its running forward ends: decode's loop goes on
meanwhile, so neither can block the other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from sglang.semi_pd.utils import InstanceRole
from sglang.semi_pd.workers.messages import MakeRoom

if TYPE_CHECKING:
    from sglang.semi_pd.memory.block_table import Answer, BlockTable

logger = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 60.0
"""Prefill is not coming back: go on without it."""

ASK_AHEAD_EVERY_S = 0.05

NOT_YET, ANSWERED_BUSY, ANSWERED_IDLE = range(3)
"""What is agreed on among ranks: the smallest of what each has seen."""


class RoomRequest:
    """Decode's question for pages; at most one is open.

    Args:
        send: delivers a question to prefill; None on ranks that do not speak.
        agree: the smallest count of all ranks, as of ``LeasedAllocator``.
        generation: of the prefill worker that is asked.
    """

    def __init__(
        self,
        table: BlockTable,
        send: Callable[[MakeRoom], None] | None,
        agree: Callable[[int], int],
        generation: int,
    ) -> None:
        self._generation = generation
        self._table, self._send, self._agree = table, send, agree
        self._sequence = self._answered().sequence  # of one that asked before this one
        self._asked_at: float | None = None
        self._is_answered = False
        self._asked_ahead_at = 0.0

    def must_wait(self, missing_pages: int, *, is_last: bool) -> bool:
        """Whether decode, ``missing_pages`` short, can still hope for them.

        Every rank calls it in the same iterations. After prefill's answer there is one
        more iteration, in which the pages may have come.

        Args:
            is_last: only one request runs; without it nothing would. Then a prefill
                that is busy is waited for too: what it computes can be put aside.
        """
        if self._asked_at is None:
            self._ask(missing_pages)
            return True
        seen = self._agree(self._seen())
        if seen == NOT_YET:
            return True
        if not self._is_answered:
            self._is_answered = True
            return True
        if is_last and seen == ANSWERED_BUSY:
            self._ask(missing_pages)
            return True
        self.satisfied()
        return False

    def satisfied(self) -> None:
        """There is memory again, or it was decided to go on without."""
        self._asked_at = None
        self._is_answered = False

    def ask_ahead(self, missing_pages: int) -> None:
        """Ask without waiting, when pages are getting few; not too often."""
        now = time.monotonic()
        is_due = now - self._asked_ahead_at > ASK_AHEAD_EVERY_S
        if missing_pages > 0 and is_due and self._send is not None:
            self._asked_ahead_at = now
            self._send(MakeRoom(missing_pages, 0))

    def _ask(self, missing_pages: int) -> None:
        self._sequence += 1
        self._asked_at = time.monotonic()
        self._is_answered = False
        if self._send is not None:
            self._send(MakeRoom(missing_pages, self._sequence))

    def _answered(self) -> Answer:
        slot = self._table.slot_of(InstanceRole.PREFILL, self._generation)
        return self._table.answer_of(slot)

    def _seen(self) -> int:
        answer = self._answered()
        if answer.sequence >= self._sequence:
            return ANSWERED_BUSY if answer.is_busy else ANSWERED_IDLE
        assert self._asked_at is not None, "only asked while a question is open"
        if time.monotonic() - self._asked_at > ANSWER_TIMEOUT_S:
            logger.warning("Prefill did not answer a request for pages")
            return ANSWERED_IDLE
        return NOT_YET
