# SPDX-License-Identifier: Apache-2.0
"""What the memory manager adds to a decode step: microseconds per allocation.

    python benchmark/semi_pd/decode_allocation.py [--batch 256] [--steps 4000] [--json]

Runs the allocator that the workers run, on the CPU, over a real block table. A decode
step allocates one token per request, so it takes a new page for a request every
``page size`` steps; ``own`` is what ours spends beside upstream's allocator: the lease,
its top-up under the lock, and the host's copy of the page numbers. Upstream's part, a
kernel on a GPU, is replaced by taking the pages only.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import torch
from sglang.semi_pd.memory.block_table import BlockTable
from sglang.semi_pd.utils import InstanceRole
from sglang.semi_pd.workers.leased_allocator import LeasedAllocator
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator

PAGES = 200_000
WARM_UP = 200


def take_only(
    allocator: PagedTokenToKVPoolAllocator,
    seq_lens: torch.Tensor,
    seq_lens_cpu: torch.Tensor,
    last_loc: torch.Tensor,
) -> torch.Tensor:
    """In place of upstream's kernel: the pages go, nothing is computed."""
    page_size = allocator.page_size
    new = int((seq_lens_cpu % page_size == 1 % page_size).sum())
    allocator.free_pages = allocator.free_pages[new:]
    return seq_lens


def measure(page_size: int, batch: int, steps: int) -> dict[str, Any]:
    """Median, 99th percentile and mean of a decode step's allocation."""
    table = BlockTable.create(num_pages=PAGES, num_rows=batch, page_size=page_size)
    mine = table.bound_to(table.register_worker(InstanceRole.DECODE, 1))
    allocator = LeasedAllocator(
        mine,
        size=PAGES * page_size,
        page_size=page_size,
        dtype=torch.float32,
        device="cpu",
        kvcache=None,
    )
    # Requests that are spread over their pages, as after a while of serving.
    seq_lens = torch.arange(batch) % page_size + 1
    used: list[np.ndarray] = []
    samples = np.empty(steps)
    for step in range(-WARM_UP, steps):
        allocator.demand_pages = 2 * batch + 32
        before = allocator._leased_host
        started = time.perf_counter_ns()
        allocator.available_size()
        allocator.alloc_decode(seq_lens, seq_lens, seq_lens)
        if step >= 0:
            samples[step] = (time.perf_counter_ns() - started) / 1000
        used.append(before[: len(before) - len(allocator._leased_host)])
        seq_lens += 1
        if len(used) == 100:  # requests end: their pages go back, outside the clock
            mine.give_pages(np.concatenate(used))
            used.clear()
    p50, p99 = np.percentile(samples, (50, 99))
    return {
        "page_size": page_size,
        "batch": batch,
        "p50_us": round(float(p50), 2),
        "p99_us": round(float(p99), 2),
        "mean_us": round(float(samples.mean()), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    PagedTokenToKVPoolAllocator.alloc_decode = take_only
    for page_size in (1, 16, 64):
        result = measure(page_size, options.batch, options.steps)
        if options.json:
            print(json.dumps(result))
        else:
            print(
                f"page size {page_size:3}, batch {options.batch}: "
                f"{result['p50_us']} us (P50), {result['p99_us']} us (P99), "
                f"{result['mean_us']} us (mean)"
            )


if __name__ == "__main__":
    main()
