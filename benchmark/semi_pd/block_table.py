# SPDX-License-Identifier: Apache-2.0
"""What the block table costs: microseconds per call, and calls per second contended.

    python benchmark/semi_pd/block_table.py [--pages 200000] [--processes 4] [--json]

Loads the package's pure modules only, so it starts at once and needs no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np

PACKAGE = Path(__file__).resolve().parents[2] / "python" / "sglang"
sys.modules["sglang"] = ModuleType("sglang")  # SGLang itself takes 30 s to import
sys.modules["sglang"].__path__ = [str(PACKAGE)]

from sglang.semi_pd.memory.block_table import BlockTable  # noqa: E402
from sglang.semi_pd.memory.id_pool import Ids  # noqa: E402
from sglang.semi_pd.utils import InstanceRole  # noqa: E402

BATCHES = (1, 16, 256, 2048)
WARM_UP = 200


def must_take(table: BlockTable, batch: int) -> Ids:
    """A batch of pages; there are always enough here."""
    pages = table.take_pages(batch)
    assert pages is not None, "the table is larger than all batches together"
    return pages


def timed_us(call: Callable[[], object], rounds: int) -> dict[str, float]:
    """Median and 99th percentile of ``rounds`` calls, in microseconds."""
    samples = np.empty(rounds)
    for index in range(-WARM_UP, rounds):
        started = time.perf_counter_ns()
        call()
        if index >= 0:
            samples[index] = (time.perf_counter_ns() - started) / 1000
    p50, p99 = np.percentile(samples, (50, 99))
    return {"p50_us": round(float(p50), 2), "p99_us": round(float(p99), 2)}


def uncontended(table: BlockTable, batch: int, rounds: int) -> dict[str, object]:
    """One process: taking, giving, and both in turn."""
    held: list[np.ndarray] = []

    def take() -> None:
        pages = table.take_pages(batch)
        if pages is not None:
            held.append(pages)

    def take_and_give() -> None:
        table.give_pages(must_take(table, batch))

    rounds = min(rounds, table.layout.num_pages // batch - WARM_UP)
    if rounds < WARM_UP:
        return {"take+give": timed_us(take_and_give, WARM_UP)}
    taking = timed_us(take, rounds)
    giving = timed_us(lambda: table.give_pages(held.pop()), len(held) - WARM_UP)
    return {
        "take": taking,
        "give": giving,
        "take+give": timed_us(take_and_give, rounds),
    }


def contended(table: BlockTable, batch: int, processes: int, calls: int) -> float:
    """Calls per second of ``processes`` that do nothing but take and give."""
    read_end, write_end = os.pipe()
    pids = []
    for _ in range(processes):
        lease = table.register_worker(InstanceRole.DECODE, 0)
        pid = os.fork()
        if not pid:
            mine = table.bound_to(lease)
            os.close(write_end)
            os.read(read_end, 1)  # returns when the parent closes its end
            for _ in range(calls // 2):
                mine.give_pages(must_take(mine, batch))
            os._exit(0)
        pids.append(pid)
    started = time.perf_counter()
    os.close(write_end)
    failed = [pid for pid in pids if os.waitpid(pid, 0)[1]]
    elapsed = time.perf_counter() - started
    os.close(read_end)
    report = table.audit()
    if failed or report.violations:
        raise SystemExit(f"failed processes {failed}, violations {report.violations}")
    return processes * calls / elapsed


def measure(pages: int, processes: int, rounds: int) -> dict[str, object]:
    """All figures for one table size."""
    results: dict[str, object] = {"pages": pages, "processes": processes}
    for batch in BATCHES:
        table = BlockTable.create(num_pages=pages, num_rows=64, page_size=16)
        table.register_worker(InstanceRole.PREFILL, 0)
        figures = uncontended(table, batch, rounds)
        rate = contended(table, batch, processes, rounds)
        usage = table.usage()
        figures["contended_calls_per_s"] = round(rate)
        figures["lock_wait_max_us"] = usage.lock_wait_max_ns / 1000
        results[f"batch {batch}"] = figures
        table.close()
    table = BlockTable.create(num_pages=pages, num_rows=64, page_size=16)
    results["audit"] = timed_us(table.audit, 20)
    results["usage"] = timed_us(table.usage, rounds)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=int, default=200_000)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5_000)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    args = parser.parse_args()
    results = measure(args.pages, args.processes, args.rounds)
    if args.json:
        print(json.dumps(results))
        return
    for name, figures in results.items():
        print(f"{name:12} {figures}")


if __name__ == "__main__":
    main()
