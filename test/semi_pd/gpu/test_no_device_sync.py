# SPDX-License-Identifier: Apache-2.0
"""A decode step never waits for the GPU because of the memory manager.

Proved by a trace: the CUDA calls of the allocator, and of requests that end, while a
forward runs.
"""

from __future__ import annotations

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

PAGES, PAGE, BATCH, STEPS = 20_000, 16, 256, 200
WAITS = "Synchronize"  # cudaDeviceSynchronize, cudaStream..., cudaEvent...


class DecodeLoop:
    """Decode steps over a real lease, while a forward runs on a stream of its own."""

    def __init__(self) -> None:
        from sglang.semi_pd.memory.block_table import BlockTable
        from sglang.semi_pd.utils import InstanceRole
        from sglang.semi_pd.workers.leased_allocator import LeasedAllocator

        self.table = BlockTable.create(num_pages=PAGES, num_rows=8, page_size=PAGE)
        mine = self.table.bound_to(self.table.register_worker(InstanceRole.DECODE, 1))
        self.allocator = LeasedAllocator(
            mine,
            size=PAGES * PAGE,
            page_size=PAGE,
            dtype=torch.float16,
            device="cuda",
            kvcache=None,
        )
        self.allocator.forward_stream = torch.cuda.Stream()
        self.weights = torch.randn(4096, 4096, device="cuda")
        # Requests at different places in their pages.
        self.lens = torch.arange(BATCH) % PAGE + 1
        self.lens_gpu = self.lens.cuda()
        pages = self.must_alloc(BATCH).view(BATCH, PAGE)
        self.last = pages.gather(1, (self.lens_gpu - 1)[:, None])[:, 0]

    def must_alloc(self, pages: int) -> torch.Tensor:
        """Slots of so many pages; there are always enough here."""
        slots = self.allocator.alloc(pages * PAGE)
        assert slots is not None
        return slots

    def step(self) -> None:
        """Launch a forward, free what a request had, allocate for the next step."""
        allocator = self.allocator
        with torch.cuda.stream(allocator.forward_stream):
            for _ in range(4):
                torch.mm(self.weights, self.weights)
        allocator.free(self.must_alloc(8))
        allocator.demand_pages = 2 * BATCH
        assert allocator.available_size() >= BATCH * PAGE
        self.lens += 1
        self.lens_gpu += 1
        self.last = allocator.alloc_decode(self.lens_gpu, self.lens, self.last)


def test_decode_steps_wait_for_nothing():
    loop = DecodeLoop()
    for _ in range(20):
        loop.step()
    torch.cuda.synchronize()
    kinds = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA]) as trace:
        with torch.profiler.record_function("decode steps"):
            for _ in range(STEPS):
                loop.step()
        torch.cuda.synchronize()
    events = list(trace.events())
    span = next(e.time_range for e in events if e.name == "decode steps")
    inside = [e.name for e in events if span.start <= e.time_range.start < span.end]
    assert any("cudaMemcpyAsync" in name for name in inside), "the trace sees CUDA"
    assert not [name for name in inside if WAITS in name]
    torch.cuda.synchronize()
    loop.allocator.return_unused()
    assert loop.table.audit().ok
