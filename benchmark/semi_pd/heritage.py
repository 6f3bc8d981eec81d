#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What it costs that the prefix cache outlives its prefill worker, part by part.

In a switch no prompt is computed while the old worker says what is in its tree, nor
while the new one takes it over. On the CPU; a GPU adds one copy of the slots each way.

    python benchmark/semi_pd/heritage.py --tokens 680000
"""

from __future__ import annotations

import argparse
import pickle
import random
import time
from array import array
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def full_tree(tokens: int, mean: int, seed: int) -> Any:
    """A tree of sequences that have nothing in common."""
    import torch
    from sglang.srt.mem_cache.base_prefix_cache import InsertParams
    from sglang.srt.mem_cache.radix_cache import RadixCache, RadixKey

    tree, source, slot = RadixCache.create_simulated(), random.Random(seed), 1
    while slot < tokens:
        length = source.randint(mean // 2, mean + mean // 2)
        ids = array("q", source.choices(range(100_000), k=length))
        slots = torch.arange(slot, slot + length)
        tree.insert(InsertParams(key=RadixKey(ids, None), value=slots, priority=0))
        slot += length
    return tree


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=680_000, help="in the tree")
    parser.add_argument("--mean", type=int, default=1280, help="tokens of a sequence")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from sglang.semi_pd.workers.prefix_tree import export_paths, import_paths
    from sglang.srt.mem_cache.radix_cache import RadixCache

    tree = full_tree(options.tokens, options.mean, options.seed)
    took: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], T]) -> T:
        began = time.perf_counter()
        result = work()
        took.setdefault(name, []).append(1e3 * (time.perf_counter() - began))
        return result

    for _ in range(options.repeats):
        paths = timed("export", lambda: export_paths(tree))
        sent = timed("write", lambda: pickle.dumps(paths))  # noqa: B023 - called here
        read = timed("read", lambda: pickle.loads(sent))  # noqa: B023, S301 - our own
        empty = RadixCache.create_simulated()
        timed("import", lambda: import_paths(empty, read))  # noqa: B023 - called here
    for name, all_ms in took.items():
        print(f"{name}: best {min(all_ms):.1f} ms, worst {max(all_ms):.1f} ms")


if __name__ == "__main__":
    main()
