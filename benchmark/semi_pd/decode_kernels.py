#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Where a decode step's time goes, kernel by kernel, in each system.

Starts each system in turn, profiles a few decode steps of one batch with SGLang's own
profiler, and prints what each kernel took, how it was launched, and the first layer in
order. Two systems that compute the same should launch the same kernels.

    python benchmark/semi_pd/decode_kernels.py --out /tmp/kernels --model-path $MODEL \\
        --systems default semi-pd-mps-100-100 semi-pd-none --batch 1 32 \\
        -- --load-format dummy --skip-tokenizer-init --attention-backend fa3
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from systems import RunningServer, look_at_each

STEPS = 10
PROMPT, ANSWER = 256, 400
"""The answers outlast the profile: the whole batch runs in every step of it."""
RUNS_S = 0.8
TRACE_TIMEOUT_S = 20.0
TIMEOUT_S = 120.0
NAME = 70
LAUNCH = ("grid", "block", "shared memory", "registers per thread")

Kernel = dict[str, Any]
"""An event of a trace in Chrome's format; times in microseconds."""


class Profiled:
    """A server whose decode steps are looked at.

    Args:
        folder: where its traces go.
    """

    def __init__(self, url: str, folder: Path, seed: int) -> None:
        self._url, self._folder = url, folder
        self._random = random.Random(seed)

    def steps(self, batch: int) -> list[Kernel]:
        """The kernels of some decode steps, in the order of their beginnings."""
        before = set(self._folder.rglob("*.json.gz"))
        with ThreadPoolExecutor(batch) as pool:
            answers = [pool.submit(self.answer, ANSWER) for _ in range(batch)]
            time.sleep(RUNS_S)
            about = {"output_dir": str(self._folder), "num_steps": STEPS}
            self._post("/start_profile", {**about, "activities": ["GPU"]})
            for answer in answers:
                answer.result()
        return max(map(kernels, self._new(before)), key=len)

    def answer(self, tokens: int) -> None:
        """Have one request answered."""
        prompt = self._random.choices(range(10, 100_000), k=PROMPT)
        how = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
        self._post("/generate", {"input_ids": prompt, "sampling_params": how})

    def _new(self, before: set[Path]) -> list[Path]:
        """Traces that have been written since; both workers may write one."""
        deadline = time.monotonic() + TRACE_TIMEOUT_S
        sizes: dict[Path, int] = {}
        while time.monotonic() < deadline:
            found = set(self._folder.rglob("*.json.gz")) - before
            now = {path: path.stat().st_size for path in found}
            if now and now == sizes:
                return list(found)
            sizes = now
            time.sleep(1.0)
        raise RuntimeError(f"no trace came into {self._folder}")

    def _post(self, path: str, body: dict[str, Any]) -> None:
        headers = {"Content-Type": "application/json"}
        data = json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            answer.read()


def kernels(trace: Path) -> list[Kernel]:
    with gzip.open(trace) as file:
        events: list[Kernel] = json.load(file)["traceEvents"]
    found = (event for event in events if event.get("cat") == "kernel")
    return sorted(found, key=lambda event: float(event["ts"]))


def table(steps: list[Kernel], rows: int) -> Iterator[str]:
    """What took longest in all, with the time of each launch and its shape."""
    by_kind: dict[tuple[str, str], list[float]] = defaultdict(list)
    for kernel in steps:
        launch = ", ".join(str(kernel["args"].get(name)) for name in LAUNCH)
        by_kind[kernel["name"], launch].append(float(kernel["dur"]))
    longest = sorted(by_kind.items(), key=lambda one: -sum(one[1]))[:rows]
    for (name, launch), took in longest:
        mean = sum(took) / len(took)
        yield f"  {mean:8.2f} us x {len(took):4d}  ({launch})  {name[:NAME]}"


def layer(steps: list[Kernel]) -> Iterator[str]:
    """The kernels from one norm to the same norm of the next layer but one."""
    norms = [place for place, one in enumerate(steps) if "RMSNorm" in one["name"]]
    if len(norms) < 8:
        return
    first = steps[norms[4]]
    for kernel in steps[norms[4] : norms[6] + 1]:
        at = float(kernel["ts"]) - float(first["ts"])
        stream = kernel["args"].get("stream")
        yield (
            f"  at {at:7.2f}  {float(kernel['dur']):7.2f} us  stream {stream}  "
            f"{kernel['name'][:NAME]}"
        )


def look(options: argparse.Namespace, server: RunningServer) -> None:
    """Print what the steps of one system are made of."""
    name = server.system.name
    folder = options.out / name
    folder.mkdir(parents=True, exist_ok=True)
    profiled = Profiled(server.url, folder, options.seed)
    profiled.answer(8)
    for batch in options.batch:
        steps = profiled.steps(batch)
        print(f"{name}, batch {batch}:", *table(steps, options.rows), sep="\n")
        print("  one layer:", *layer(steps), sep="\n", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--rows", type=int, default=16, help="kernels to show")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--port", type=int, default=31500)
    return look_at_each(parser, look)


if __name__ == "__main__":
    sys.exit(main())
