#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The memory manager alone: two processes, one pool of KV cache blocks, no server.

    python examples/semi_pd/memory_manager.py

"Prefill" allocates blocks and writes them; "decode", another process, finds them by
request and layer and reads the same memory. No byte is copied between the two.
"""

from __future__ import annotations

import multiprocessing
import os

import torch
from sglang.semi_pd.unified_memory_manager import MemoryHandle, UnifiedMemoryManager
from sglang.semi_pd.utils import InstanceRole

REQUEST, LAYER, BLOCKS = "req_1", 0, 3


def prefill(pool: UnifiedMemoryManager) -> None:
    """Take blocks and write the number of each into all its bytes."""
    blocks = pool.allocate_kv_cache_blocks(REQUEST, LAYER, BLOCKS, InstanceRole.PREFILL)
    assert blocks is not None, "a new pool has room for three blocks"
    tensors = pool.access_kv_cache(REQUEST, LAYER, InstanceRole.PREFILL)
    for number, tensor in enumerate(tensors, start=1):
        tensor.fill_(number)
    print(f"prefill (pid {os.getpid()}) wrote blocks {blocks}")


def decode(handle: MemoryHandle) -> None:
    """Body of the other process: read the blocks in place, then free them."""
    with UnifiedMemoryManager.attach(handle) as pool:
        blocks = pool.get_block_table_index(REQUEST, LAYER)
        tensors = pool.access_kv_cache(REQUEST, LAYER, InstanceRole.DECODE)
        read = [int(tensor.unique().item()) for tensor in tensors]
        print(f"decode  (pid {os.getpid()}) read  blocks {blocks}: {read}")
        assert read == [1, 2, 3], "decode must see what prefill wrote"
        del tensors
        print(f"decode freed {pool.deallocate_kv_cache_blocks(REQUEST)} blocks")


def main() -> None:
    """Run both sides and show how full the pool is in between."""
    with UnifiedMemoryManager(
        total_blocks=1000, block_size=4096, page_size=16, device=torch.device("cpu")
    ) as pool:
        prefill(pool)
        usage = pool.get_memory_usage()
        used = f"{usage['allocated_blocks']} of {usage['total_blocks']} blocks"
        print(f"in use: {used}, by role: {usage['blocks_by_role']}")
        context = multiprocessing.get_context("spawn")
        reader = context.Process(target=decode, args=(pool.handle(),))
        reader.start()
        reader.join()
        assert reader.exitcode == 0, f"decode ended with {reader.exitcode}"
        left = pool.get_memory_usage()["allocated_blocks"]
        print(f"in use at the end: {left} blocks")
        assert left == 0


if __name__ == "__main__":
    main()
