#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Record what clients of a running server see: one line of JSON per request.

Poisson arrivals of random token ids against any SGLang server. The file is what
`semi-pd simulate --calibrate` and `--validate` read:

    {"arrival_s", "input_len", "output_len", "ttft_ms", "tpot_ms", "worst_gap_ms"}

    python benchmark/semi_pd/record_run.py --port 30000 --rate 4 --requests 200 \\
        --input 256 --output 64 --seed 1 --out run.jsonl
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp

_CV = 0.5  # coefficient of variation of lengths, as in semi-pd simulate


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=30000)
    parser.add_argument("--rate", type=float, default=4.0, help="requests per second")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--input", type=int, default=256, help="mean prompt tokens")
    parser.add_argument("--output", type=int, default=64, help="mean output tokens")
    parser.add_argument("--vocabulary", type=int, default=250, help="token ids below")
    parser.add_argument("--longest", type=int, default=100_000, help="tokens, in all")
    parser.add_argument("--slo-class", choices=("interactive", "batch"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args(arguments)


def length(draw: random.Random, mean: int) -> int:
    sigma = math.sqrt(math.log(1 + _CV**2))
    return max(2, round(draw.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)))


async def one_request(
    http: aiohttp.ClientSession, url: str, body: dict[str, Any]
) -> list[float]:
    """Return when each event of the stream arrived, and first when it was sent."""
    stamps = [time.perf_counter()]
    async with http.post(url, json=body) as answer:
        answer.raise_for_status()
        async for line in answer.content:
            if line.startswith(b"data: {"):
                stamps.append(time.perf_counter())
    return stamps


def record(arrival_s: float, prompt: int, tokens: int, stamps: list[float]) -> str:
    sent_s, *events = stamps
    gaps = [b - a for a, b in zip(events, events[1:], strict=False)]
    tpot_s = (events[-1] - events[0]) / (tokens - 1) if tokens > 1 else None
    row = {
        "arrival_s": arrival_s,
        "input_len": prompt,
        "output_len": tokens,
        "ttft_ms": 1e3 * (events[0] - sent_s),
        "tpot_ms": None if tpot_s is None else 1e3 * tpot_s,
        "worst_gap_ms": 1e3 * max(gaps) if gaps else None,
    }
    return json.dumps(row)


async def run(options: argparse.Namespace) -> list[str]:
    draw = random.Random(options.seed)
    headers = {"X-SLO-Class": options.slo_class} if options.slo_class else {}
    started_s = time.perf_counter()

    async def serve(at_s: float, prompt: list[int], tokens: int) -> str:
        await asyncio.sleep(max(0.0, started_s + at_s - time.perf_counter()))
        params = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
        body = {"input_ids": prompt, "stream": True, "sampling_params": params}
        arrival_s = time.perf_counter() - started_s
        stamps = await one_request(http, url, body)
        return record(arrival_s, len(prompt), tokens, stamps)

    url = f"http://{options.host}:{options.port}/generate"
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, read_bufsize=1 << 24, headers=headers
    ) as http:
        at_s, tasks = 0.0, []
        for _ in range(options.requests):
            at_s += draw.expovariate(options.rate)
            tokens = min(length(draw, options.output), options.longest // 2)
            count = min(length(draw, options.input), options.longest - tokens)
            prompt = [draw.randrange(5, options.vocabulary) for _ in range(count)]
            tasks.append(asyncio.create_task(serve(at_s, prompt, tokens)))
        return await asyncio.gather(*tasks)


def main() -> int:
    options = parse()
    lines = asyncio.run(run(options))
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} requests in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
