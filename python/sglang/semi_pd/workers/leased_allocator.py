# SPDX-License-Identifier: Apache-2.0
"""SGLang's KV allocator over pages leased from the block table that all workers share.

Two levels keep the lock off the hot path. Pages are leased in bulk, under the lock;
upstream's allocator then works inside the lease, on the device, as if it were alone.
``available_size()`` counts leased pages only, so an admission check stays true until
the allocation that follows it, whatever the other worker does meanwhile (the paper's
Figure 7: query, get and update are one operation).

A freed page goes back to the table, and so to the other worker, only when the forward
that may still write to it has finished: under overlap scheduling a request that has
just ended has one more forward in flight. This worker itself may use it again at once,
as its next forward comes after: what the prefix cache evicts for an allocation is there
for that allocation. If it does not use it, it keeps it until then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from sglang.semi_pd.memory.block_table import BlockTable
from sglang.semi_pd.memory.id_pool import Ids
from sglang.semi_pd.workers.slots import OnHost, pages_of
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.memory_pool import KVCache
from sglang.srt.utils import get_num_new_pages

LEASE_PAGES = 512
"""Pages leased at a time beyond what is needed now."""


class _Retiring(NamedTuple):
    """Freed slots; for everybody only if ``is_promised``. None: only an instant."""

    freed: OnHost | None
    is_promised: bool
    on_published: Callable[[], None] | None


def alone(count: int) -> int:
    """What a single rank agrees on with itself."""
    return count


class LeasedAllocator(PagedTokenToKVPoolAllocator):
    """Upstream's paged allocator (any page size) over a lease that grows and shrinks.

    Attributes:
        forward_stream: the stream the model runs on, once it is known (GPU only).
        frees: how often slots were freed.
        demand_pages: pages the scheduler expects to allocate in its next iteration.
        agree: the smallest of the counts that all ranks of a group pass, called by all
            of them at the same point: they must lease the same number of pages, or
            they would schedule differently.
    """

    def __init__(  # noqa: PLR0913 - upstream's arguments
        self,
        table: BlockTable,
        *,
        size: int,
        page_size: int,
        dtype: torch.dtype,
        device: str,
        kvcache: KVCache,
    ) -> None:
        self._table = table
        self._retiring: deque[_Retiring] = deque()
        self._recycled: list[OnHost] = []
        self._leased_host: Ids = np.empty(0, np.int64)
        self.forward_stream: torch.cuda.Stream | None = None
        self.demand_pages = self.frees = 0
        self.agree: Callable[[int], int] = alone
        self._is_promising = False
        super().__init__(size, page_size, dtype, device, kvcache, need_sort=False)

    def available_size(self) -> int:
        """Tokens this worker may allocate without asking anyone."""
        self.lease(self.demand_pages)
        return len(self._leased_host) * self.page_size

    def lease(self, pages: int) -> bool:
        """Have ``pages`` leased, or as many as there are; whether all are."""
        if pages > len(self._leased_host):
            wanted = max(pages, self.demand_pages)
            self._extend_lease(wanted - len(self._leased_host))
        self.publish_retired()
        return len(self._leased_host) >= pages

    def _extend_lease(self, missing: int) -> None:
        found = self._table.take_up_to(missing + LEASE_PAGES, 0)
        assert found is not None, "at least none can always be taken"
        while len(found) < missing and (freed := self._next_recyclable()):
            pages = pages_of(freed.wait_for_copy(), self.page_size)
            found = np.concatenate((found, self._table.recycle_pages(pages)))
            self._recycled = [*self._still_written(), freed]
        agreed = self.agree(len(found))
        if agreed < len(found):
            self._give_later(found[agreed:])
        if agreed:
            self._set_lease(np.concatenate((self._leased_host, found[:agreed])))

    def _next_recyclable(self) -> OnHost | None:
        """Take the oldest freed slots that nobody has been promised, if any."""
        for place, retiring in enumerate(self._retiring):
            if not retiring.is_promised and retiring.freed is not None:
                del self._retiring[place]
                return retiring.freed
        return None

    @contextmanager
    def promising(self, on_published: Callable[[], None]) -> Iterator[None]:
        """What is freed inside is for the other worker; tell when it can have it."""
        self._is_promising = True
        try:
            yield
        finally:
            self._is_promising = False
            self._retiring.append(_Retiring(None, True, on_published))

    def return_unused(self, keep_pages: int = 0) -> None:
        """Hand back leased pages beyond ``keep_pages``: the other may need them."""
        self.publish_retired()
        surplus = self._leased_host[keep_pages:]  # nothing, most of the time
        if len(surplus) and not self._still_written():
            self._set_lease(self._leased_host[:keep_pages])
            self._table.give_pages(surplus)

    def held_pages(self) -> Ids | None:
        """The pages of the lease; None while freed ones wait to be published."""
        return None if self._retiring else self._leased_host

    @property
    def retiring_pages(self) -> int:
        """Freed pages, at most, that wait to be published and may be used again."""
        slots = sum(
            one.freed.slots.numel()
            for one in self._retiring
            if one.freed is not None and not one.is_promised
        )
        return slots // self.page_size

    def copy_to_host(self, slots: torch.Tensor) -> OnHost:
        """Bring slots to the host, without waiting; to know when others may have them.

        ``slots`` (int32 or int64, on the pool's device) may be a view: it is read in
        the order of the stream.
        """
        if not self._on_gpu:
            return OnHost(slots.clone(), ())
        on_host = torch.empty_like(slots, device="cpu", pin_memory=True)
        on_host.copy_(slots, non_blocking=True)
        streams = [torch.cuda.current_stream()]
        if self.forward_stream is not None:
            streams.append(self.forward_stream)
        return OnHost(on_host, tuple(stream.record_event() for stream in streams))

    @property
    def leased_pages(self) -> int:
        """Pages leased and not allocated."""
        return len(self._leased_host)

    # Upstream's contract

    def alloc(self, need_size: int) -> torch.Tensor | None:
        self.lease(need_size // self.page_size)
        return self._from_lease(super().alloc(need_size))

    def alloc_extend(  # type: ignore[no-untyped-def]  # noqa: PLR0913
        self,
        prefix_lens,
        prefix_lens_cpu,
        seq_lens,
        seq_lens_cpu,
        last_loc,
        extend_num_tokens,
        num_new_pages=None,
    ):
        if num_new_pages is None:
            num_new_pages = get_num_new_pages(
                seq_lens=seq_lens_cpu,
                page_size=self.page_size,
                prefix_lens=prefix_lens_cpu,
            )
        if not self.lease(num_new_pages):
            return None
        return self._from_lease(
            super().alloc_extend(
                prefix_lens,
                prefix_lens_cpu,
                seq_lens,
                seq_lens_cpu,
                last_loc,
                extend_num_tokens,
                num_new_pages,
            )
        )

    def alloc_decode(self, seq_lens, seq_lens_cpu, last_loc):  # type: ignore[no-untyped-def]
        if len(self._leased_host) < len(seq_lens_cpu):  # else there is one for each
            pages = get_num_new_pages(
                seq_lens=seq_lens_cpu, page_size=self.page_size, decode=True
            )
            if not self.lease(pages):
                return None
        return self._from_lease(super().alloc_decode(seq_lens, seq_lens_cpu, last_loc))

    def free(self, free_index: torch.Tensor) -> None:
        if free_index.numel():
            self.frees += 1
            self._retire(free_index)

    def free_segment(self, free_index: torch.Tensor, *, start_pos: int) -> None:
        self.free(free_index)

    def free_group_begin(self) -> None:
        """Frees are deferred already; grouping them changes nothing."""

    def free_group_end(self) -> None:
        """See ``free_group_begin``."""

    def clear(self) -> None:
        """Upstream's flush: forget this worker's unused pages, and nobody else's."""
        self._set_lease(self._leased_host)
        self.return_unused()
        self.release_pages = torch.empty((0,), dtype=torch.int64, device=self.device)
        self.is_not_in_free_group = True
        self.free_group: list[torch.Tensor] = []

    # The lease, kept on the host and on the device in the same order

    def _set_lease(self, pages: Ids) -> None:
        self._leased_host = pages
        on_host = torch.from_numpy(pages)
        if self._on_gpu:
            on_host = on_host.pin_memory()
        self.free_pages = on_host.to(self.device, non_blocking=True)

    def _from_lease(self, allocated: torch.Tensor | None) -> torch.Tensor | None:
        """Drop from the host's copy what upstream has just taken from the device's."""
        taken = len(self._leased_host) - len(self.free_pages)
        self._leased_host = self._leased_host[taken:]
        return allocated

    # Freed pages, until they are published

    def _still_written(self) -> list[OnHost]:
        """What was recycled while a forward that may write to it still runs."""
        self._recycled = [one for one in self._recycled if not one.is_finished]
        return self._recycled

    def _give_later(self, pages: Ids) -> None:
        """Let the other worker have pages that may have been recycled just now."""
        events = [event for one in self._still_written() for event in one.finished]
        slots = torch.from_numpy(np.repeat(pages * self.page_size, self.page_size))
        self._retiring.append(_Retiring(OnHost(slots, tuple(events)), False, None))
        self.publish_retired()

    def _retire(self, slots: torch.Tensor) -> None:
        freed = self.copy_to_host(slots)
        self._retiring.append(_Retiring(freed, self._is_promising, None))

    def publish_retired(self) -> None:
        """Let the other worker have what no forward can write to any more."""
        while self._retiring:
            freed, _, on_published = self._retiring[0]
            if freed is not None:
                if not freed.is_finished:
                    return
                self._table.give_pages(pages_of(freed.slots, self.page_size))
            self._retiring.popleft()
            if on_published is not None:
                on_published()

    @property
    def _on_gpu(self) -> bool:
        return not str(self.device).startswith("cpu")


class SoleAllocator(LeasedAllocator):
    """For a worker that shares the block table with nobody: what is free is there."""

    def available_size(self) -> int:
        self.publish_retired()
        return (self.leased_pages + self._table.pages_free) * self.page_size
