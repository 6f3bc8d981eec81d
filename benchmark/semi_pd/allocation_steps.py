# SPDX-License-Identifier: Apache-2.0
"""Decode steps of the workers' allocator and of upstream's, for ``decode_allocation``.

Apart from it because this imports SGLang, which takes long.
"""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import torch
from sglang.semi_pd.memory.block_table import BlockTable
from sglang.semi_pd.utils import InstanceRole
from sglang.semi_pd.workers.leased_allocator import LeasedAllocator
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator
from sglang.srt.utils import get_num_new_pages

PAGES = 200_000
Samples = npt.NDArray[np.float64]
WARM_UP = 200


def take_pages(allocator: PagedTokenToKVPoolAllocator, pages: int) -> torch.Tensor:
    """In place of upstream's kernel: the pages go, nothing is computed."""
    allocator.free_pages = allocator.free_pages[pages:]
    return allocator.free_pages


def take_for_tokens(
    allocator: PagedTokenToKVPoolAllocator, need_size: int
) -> torch.Tensor:
    """Upstream's ``alloc``."""
    return take_pages(allocator, need_size // allocator.page_size)


def take_for_decode(
    allocator: PagedTokenToKVPoolAllocator,
    seq_lens: torch.Tensor,
    seq_lens_cpu: torch.Tensor,
    last_loc: torch.Tensor,
) -> torch.Tensor:
    """Upstream's ``alloc_decode``."""
    page_size = allocator.page_size
    pages = get_num_new_pages(seq_lens=seq_lens_cpu, page_size=page_size, decode=True)
    return take_pages(allocator, int(pages))


class Ours:
    """The allocator of a worker, over a block table."""

    def __init__(self, page_size: int) -> None:
        table = BlockTable.create(num_pages=PAGES, num_rows=8, page_size=page_size)
        self.table = table.bound_to(table.register_worker(InstanceRole.DECODE, 1))
        self.allocator = LeasedAllocator(
            self.table,
            size=PAGES * page_size,
            page_size=page_size,
            dtype=torch.float32,
            device="cpu",
            kvcache=None,
        )

    def recycle(self) -> None:
        """Requests end: everything is free again."""
        self.allocator._leased_host = np.empty(0, np.int64)
        assert self.table.lease is not None
        owned = np.flatnonzero(self.table.page_owners() == self.table.lease.slot)
        self.table.give_pages(owned)
        self.allocator.clear()


class Upstreams:
    """SGLang's own allocator."""

    def __init__(self, page_size: int) -> None:
        self.allocator = PagedTokenToKVPoolAllocator(
            PAGES * page_size, page_size, torch.float32, "cpu", None, need_sort=False
        )

    def recycle(self) -> None:
        """Requests end: everything is free again."""
        self.allocator.clear()


def measure(kind: Ours | Upstreams, page_size: int, batch: int, steps: int) -> Samples:
    """Microseconds of each step: the check of admission, and the allocation."""
    allocator = kind.allocator
    # Requests that are spread over their pages, as after a while of serving.
    seq_lens = torch.arange(batch) % page_size + 1
    samples = np.empty(steps)
    for step in range(-WARM_UP, steps):
        if isinstance(kind, Ours):
            kind.allocator.demand_pages = 2 * batch + 32
        started = time.perf_counter_ns()
        allocator.available_size()
        if page_size == 1:
            allocator.alloc(batch)
        else:
            allocator.alloc_decode(seq_lens, seq_lens, seq_lens)
        if step >= 0:
            samples[step] = (time.perf_counter_ns() - started) / 1000
        seq_lens += 1
        if step % 200 == 0:
            kind.recycle()
    return samples


def replace_kernels() -> None:
    """Upstream's allocator computes no slot numbers from now on."""
    PagedTokenToKVPoolAllocator.alloc = take_for_tokens
    PagedTokenToKVPoolAllocator.alloc_decode = take_for_decode
