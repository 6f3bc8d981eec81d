# SPDX-License-Identifier: Apache-2.0
"""Decode's room: pages for the next steps of what runs.

A step that finds no page puts a request aside, and its stream stands still. So a part
of the pool is free for decode alone while requests run, prefill is asked to evict
before that is used up, and once more, and waited for, when a page is missing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sglang.semi_pd.workers.room_request import RoomRequest

if TYPE_CHECKING:
    from sglang.semi_pd.memory.block_table import BlockTable
    from sglang.semi_pd.workers.leased_allocator import LeasedAllocator
    from sglang.semi_pd.workers.messages import MakeRoom
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
    from sglang.srt.server_args import ServerArgs

logger = logging.getLogger(__name__)

DECODE_RESERVE_PAGES = 4096
LARGEST_RESERVE_SHARE = 16
"""Free pages only decode may take: 4096, but at most a sixteenth of the pool."""

MIN_LEASE_PAGES = 32
"""Pages kept ready beyond what the running batch needs for its next two steps."""


def put_all_aside(
    original: Callable[..., tuple[list[Req], float, list[Req]]],
    batch: ScheduleBatch,
    server_args: ServerArgs,
) -> tuple[list[Req], float, list[Req]]:
    """As upstream, but the last request waits like the others, where upstream ends it.

    Alone it fits the pool. What it lacks is with prefill or a standby, or on its way
    there: putting the others aside gave back what they had borrowed, and freed nothing
    yet.
    """
    told_to_end = [(req, req.to_finish) for req in batch.reqs]
    put_aside, new_token_ratio, ended = original(batch, server_args)
    for req, reason in told_to_end:
        req.to_finish = reason  # upstream's is that there is no memory
    if ended:
        logger.info("It is not ended, it waits for memory: %s", ended[0].rid)
    return [*put_aside, *ended], new_token_ratio, []


class DecodeRoom:
    """What decode leases, keeps free, and asks prefill for.

    Args:
        agree: the smallest count of all ranks, as of ``LeasedAllocator``.
    """

    _request: RoomRequest

    def __init__(
        self,
        allocator: LeasedAllocator,
        table: BlockTable,
        agree: Callable[[int], int],
    ) -> None:
        self._allocator, self._table, self._agree = allocator, table, agree
        pages = table.layout.num_pages
        self._reserve = min(DECODE_RESERVE_PAGES, pages // LARGEST_RESERVE_SHARE)

    def turn_to(self, generation: int, send: Callable[[MakeRoom], None] | None) -> None:
        """Ask the prefill worker of a generation; ``send`` as of ``RoomRequest``."""
        self._request = RoomRequest(self._table, send, self._agree, generation)

    def demand(self, requests: int, pages_to_resume: int) -> None:
        """Let the next leases be for two steps, and for one that was put aside."""
        ahead = 2 * requests + MIN_LEASE_PAGES
        self._allocator.demand_pages = ahead + pages_to_resume

    def must_wait(self, reqs: Sequence[Req], *, is_last: bool) -> bool:
        """Whether the next step of ``reqs`` lacks pages that prefill may still free.

        Args:
            is_last: as of ``RoomRequest.must_wait``.
        """
        missing = self._missing_pages(reqs)
        if not missing:
            self._request.satisfied()
            return False
        return self._request.must_wait(missing, is_last=is_last)

    def keep_reserve(self, *, has_work: bool) -> None:
        """While requests run prefill may not take the last pages: decode would have to
        put some aside. When none does, a prompt may be as large as the pool."""
        assert self._table.lease is not None, "a worker has a lease"
        wanted, slot = self._reserve if has_work else 0, self._table.lease.slot
        if self._table.reserve_of(slot) != wanted:  # also what a predecessor left
            self._table.set_reserve(slot, wanted)

    def ask_ahead(self) -> None:
        """Keep the reserve free while requests run: prefill evicts beside its work."""
        wanted = max(self._reserve, self._allocator.demand_pages)
        there = self._table.pages_free + self._allocator.leased_pages
        self._request.ask_ahead(wanted - there)

    def _missing_pages(self, reqs: Sequence[Req]) -> int:
        """Pages that the next step needs and that cannot be leased."""
        if self._allocator.lease(len(reqs)):
            return 0  # one for each: no need to count who fills a page
        needed = sum(
            req.kv_committed_len % self._allocator.page_size == 0
            for req in reqs
            if not req.finished()
        )
        return max(0, needed - self._allocator.leased_pages)
