#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How long after the first token comes the second, beside the gaps that follow?

Poisson arrivals of random prompts at a running server, of SGLang or Semi-PD. A gap that
every request has once, and that is longer than its others, is its worst gap.

    python benchmark/semi_pd/first_gap.py --port 30000 --rate 12 --input 1024 \\
        --output 256 --seconds 20
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time

import aiohttp
from loads import FIRST_TOKEN
from record_run import one_request
from records import percentile

READ_BUFFER = 10 << 20
WARM_UP = 0.2
"""Part of the requests, the first, that does not count."""


async def run(options: argparse.Namespace) -> list[list[float]]:
    """When each request was sent, and when each piece of its answer came."""
    source = random.Random(options.seed)
    ids = range(FIRST_TOKEN, options.vocabulary)
    timeout = aiohttp.ClientTimeout(total=None)
    url = f"http://{options.host}:{options.port}/generate"
    async with aiohttp.ClientSession(
        timeout=timeout,
        connector=aiohttp.TCPConnector(limit=0),
        read_bufsize=READ_BUFFER,
    ) as http:
        tasks, ends = [], time.perf_counter() + options.seconds
        while time.perf_counter() < ends:
            body = {
                "input_ids": source.choices(ids, k=options.input),
                "stream": True,
                "sampling_params": {
                    "temperature": 0,
                    "max_new_tokens": options.output,
                    "ignore_eos": True,
                },
            }
            tasks.append(asyncio.create_task(one_request(http, url, body)))
            await asyncio.sleep(source.expovariate(options.rate))
        return await asyncio.gather(*tasks)


def said(name: str, values: list[float]) -> str:
    shown = (f"{1e3 * percentile(values, part):.1f}" for part in (0.5, 0.9, 0.99))
    return f"{name}, P50 / P90 / P99, ms: {' / '.join(shown)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=30000)
    parser.add_argument("--rate", type=float, default=12.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--input", type=int, default=1024, help="tokens of a prompt")
    parser.add_argument("--output", type=int, default=256, help="tokens of an answer")
    parser.add_argument("--vocabulary", type=int, default=100_000, help="ids below it")
    parser.add_argument("--seed", type=int, default=0)
    found = asyncio.run(run(parser.parse_args()))
    found = found[int(WARM_UP * len(found)) :]
    gaps = [
        [b - a for a, b in zip(one[1:], one[2:], strict=False)]
        for one in found
        if len(one) > 3
    ]
    print(len(gaps), "requests")
    print(said("first token", [one[1] - one[0] for one in found]))
    print(said("first gap", [one[0] for one in gaps]))
    print(said("other gaps", [gap for one in gaps for gap in one[1:]]))
    print(said("worst gap of each", [max(one) for one in gaps]))
    firsts = sum(one[0] == max(one) for one in gaps)
    print(f"the first gap is the worst in {firsts} of {len(gaps)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
