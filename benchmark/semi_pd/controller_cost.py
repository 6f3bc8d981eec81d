#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Does the SLO controller cost decode time? Two servers, in turns, many rounds.

Start one server with `--enable-semi-pd` (no controller) and one with
`--enable-semi-pd-coordinator --slo-mode advise --slo-monitoring-interval 0.1` (it looks
a hundred times as often as by default and never moves), otherwise alike. The rounds
alternate so that a busy host disturbs both. Prints the median time between two tokens
of each, and the difference with a 95 % bootstrap interval over rounds; exit status 1 if
the whole interval lies above 1 %.

    python benchmark/semi_pd/controller_cost.py --off 31000 --on 31001
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys

import aiohttp
from record_run import one_request

_TOLERATED = 0.01
_RESAMPLES = 2000


async def round_ms(
    http: aiohttp.ClientSession, port: int, options: argparse.Namespace, seed: int
) -> float:
    """Return the median gap between tokens of streams that run together."""
    draw = random.Random(seed)
    params = {"temperature": 0, "max_new_tokens": options.tokens, "ignore_eos": True}

    async def gaps() -> list[float]:
        prompt = [draw.randrange(5, 250) for _ in range(options.input)]
        body = {"input_ids": prompt, "stream": True, "sampling_params": params}
        url = f"http://{options.host}:{port}/generate"
        _, *stamps = await one_request(http, url, body)
        return [1e3 * (b - a) for a, b in zip(stamps, stamps[1:], strict=False)]

    streams = await asyncio.gather(*(gaps() for _ in range(options.streams)))
    return statistics.median(gap for stream in streams for gap in stream)


async def measure(options: argparse.Namespace) -> list[tuple[float, float]]:
    """Return (off, on) of every round; which goes first alternates."""
    timeout = aiohttp.ClientTimeout(total=None)
    pairs = []
    async with aiohttp.ClientSession(timeout=timeout) as http:
        for number in range(options.rounds + 1):
            ports = [options.off, options.on]
            order = ports if number % 2 else ports[::-1]
            took = {port: await round_ms(http, port, options, number) for port in order}
            if number:  # the first warms up
                pairs.append((took[options.off], took[options.on]))
    return pairs


def interval(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """Return a 95 % bootstrap interval of the median of on / off - 1."""
    draw = random.Random(0)
    ratios = [on / off - 1 for off, on in pairs]
    medians = sorted(
        statistics.median(draw.choices(ratios, k=len(ratios)))
        for _ in range(_RESAMPLES)
    )
    return medians[_RESAMPLES // 40], medians[-_RESAMPLES // 40]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--off", type=int, required=True, help="port, no controller")
    parser.add_argument("--on", type=int, required=True, help="port, controller looks")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--input", type=int, default=64, help="prompt tokens")
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    pairs = asyncio.run(measure(options))
    off, on = (statistics.median(column) for column in zip(*pairs, strict=True))
    low, high = interval(pairs)
    print(f"time between tokens, P50: off {off:.3f} ms, on {on:.3f} ms")
    print(f"difference {on / off - 1:+.2%}, 95 % interval {low:+.2%} to {high:+.2%}")
    return int(low > _TOLERATED)


if __name__ == "__main__":
    sys.exit(main())
