# SPDX-License-Identifier: Apache-2.0
"""Prefill's room: pages for the prompts that wait, and for decode when it asks.

The prefix cache takes every page there is. So prefill evicts ahead of each batch, and
for decode, but never what the rest of a prompt under way was admitted for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sglang.semi_pd.memory.block_table import Answer
from sglang.semi_pd.workers.messages import MakeRoom
from sglang.srt.mem_cache.base_prefix_cache import EvictParams

if TYPE_CHECKING:
    from sglang.semi_pd.memory.block_table import BlockTable
    from sglang.semi_pd.workers.leased_allocator import LeasedAllocator
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache.base_prefix_cache import BasePrefixCache

AHEAD_SHARE = 16
"""At most a sixteenth of the pool is kept ready for the next batch."""


class PrefillRoom:
    """What prefill leases, evicts and keeps.

    ``unfinished`` is the prompt of which chunks are still to be computed, if any.

    Args:
        batch_tokens: that a batch computes at most; 0 if there is no limit.
    """

    def __init__(
        self,
        tree: BasePrefixCache,
        allocator: LeasedAllocator,
        table: BlockTable,
        batch_tokens: int,
    ) -> None:
        self._tree, self._allocator, self._table = tree, allocator, table
        self._pages_ahead = min(
            batch_tokens // allocator.page_size,
            table.layout.num_pages // AHEAD_SHARE,
        )

    def demand(self, prompts: Iterable[Req]) -> None:
        """Let the next leases be for all prompts that wait."""
        self._allocator.demand_pages = sum(map(self._pages_of, prompts))

    def has_room_for(self, tokens: int) -> bool:
        """Whether that many can be allocated, if the prefix cache gives what it can."""
        room = self._allocator.available_size() + self._tree.evictable_size()
        page_size = self._allocator.page_size
        return room >= -(-tokens // page_size) * page_size

    def evict_for_decode(
        self, message: MakeRoom, unfinished: Req | None, *, is_busy: bool
    ) -> None:
        """Give what is leased and not needed, evict; answer when decode can have it.

        Args:
            is_busy: whether prompts are being computed, which decode may wait for.
        """

        def answer() -> None:
            if message.sequence:
                self._table.publish_answer(Answer(message.sequence, is_busy))

        with self._allocator.promising(answer):
            self.evict(message.pages, unfinished)
        self._allocator.return_unused(self._pages_of(unfinished) if unfinished else 0)

    def evict(self, pages: int, unfinished: Req | None) -> None:
        """Evict, but nothing that the rest of ``unfinished`` was admitted for."""
        page_size = self._allocator.page_size
        spare = self._tree.evictable_size() - self._pages_owed(unfinished) * page_size
        tokens = min(pages * page_size, spare)
        if tokens > 0:
            self._tree.evict(EvictParams(num_tokens=tokens))

    def evict_ahead(self, unfinished: Req | None) -> None:
        """While a batch runs, free pages for the next: the copy of their numbers to the
        host would otherwise wait for it."""
        # Ranks see their copies end at different times, and must evict the same.
        pages = self._allocator.agree(
            max(0, self._pages_ahead - self._allocator.retiring_pages)
        )
        if self._tree.is_tree_cache() and not self._allocator.lease(pages):
            self.evict(pages - self._allocator.leased_pages, unfinished)

    def publish_held(self) -> None:
        """Let anybody see what is held and in no request's use."""
        self._table.publish_held(
            leased=self._allocator.leased_pages,
            cached=self._tree.evictable_size() // self._allocator.page_size,
        )

    def _pages_owed(self, unfinished: Req | None) -> int:
        """Pages that the rest of a prompt needs and that are not leased."""
        if unfinished is None:
            return 0
        return max(0, self._pages_of(unfinished) - self._allocator.leased_pages)

    def _pages_of(self, prompt: Req) -> int:
        """Pages for a prompt, and for the tokens of one that is resumed: the last page
        may be begun only, and one is slack."""
        tokens = len(prompt.origin_input_ids) + len(prompt.output_ids)
        return tokens // self._allocator.page_size + 2
