#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What clients notice of rotations under load: gaps, first tokens, seconds, tokens.

Sends one of the benchmark's loads to a running Semi-PD server, first with the split at
rest, then while it rotates between the given splits again and again, then with the last
split at rest. A rotation's worst gap is that of any stream, from the request for the
split until a second after it serves. What clients notice while it rotates is compared
with both splits at rest: of two, the server begins with the second and ends with the
first. A seed repeats arrivals and lengths, and each part begins with the same: give the
parts at rest as long as the rotations take. Tokens differ from run to run.

    python benchmark/semi_pd/rotations.py --port 30000 --load mixed --rate 12 \\
        --splits 50/30 50/50 --times 21 --out rotations.json

Exit code 1 if a request failed or did not give as many tokens as it was asked for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from loads import FIRST_TOKEN, LOADS, Load, miniature

AFTER_S = 1.0
MOMENTS_S = (-1e3, -4.0, -2.0, -1.0, -0.5, -0.3, 0.0, 0.3, 0.6, AFTER_S)
"""From when a new split served: first tokens are told apart by when a request came."""
READ_BUFFER = 1 << 24
KEEPALIVE_S = 2.0  # less than the server's: it may not close what is used again
Span = tuple[float, float]
"""From when to when, in seconds since the load began."""


@dataclass
class Stream:
    """One request: when it was sent and when each piece of its answer came."""

    sent: float
    asked_tokens: int
    stamps: list[float] = field(default_factory=list)
    tokens: int = 0

    @property
    def ttft_ms(self) -> float:
        return 1e3 * (self.stamps[0] - self.sent)

    def gaps(self) -> Iterable[tuple[float, float]]:
        """When each gap between pieces ended, and how long it was, in seconds."""
        for a, b in zip(self.stamps, self.stamps[1:], strict=False):
            yield b, b - a


@dataclass
class Rotation:
    """One rotation as clients saw it; times in seconds since the load began.

    Attributes:
        worst_gap_at_s: end of its worst gap, from when the new split served.
    """

    split: str
    asked: float
    served: float
    took_s: float = 0.0
    worst_gap_ms: float = 0.0
    worst_gap_at_s: float = 0.0
    ttft_p90_ms: float = 0.0


class Client:
    """Keeps a load up and rotates meanwhile."""

    def __init__(self, options: argparse.Namespace, http: aiohttp.ClientSession):
        self._options, self._http = options, http
        self._url = f"http://{options.host}:{options.port}"
        self._random = random.Random(options.seed)
        self._tokens = (
            random.Random()
        )  # else a run finds another's prompts in the cache
        self.began = time.perf_counter()
        self._ends = False
        self.streams: list[Stream] = []
        self.failures: list[str] = []

    def now(self) -> float:
        return time.perf_counter() - self.began

    async def keep_up(self, load: Load) -> None:
        """Poisson arrivals until ``finish``; then wait for every stream."""
        tasks = []
        while not self._ends:
            await asyncio.sleep(self._random.expovariate(self._options.rate))
            tasks.append(asyncio.create_task(self._send(*load.shape(self._random, 0))))
        await asyncio.gather(*tasks)

    def begin_again(self) -> None:
        """What comes from now on came before, but for its tokens."""
        self._random = random.Random(self._options.seed)

    def finish(self) -> None:
        self._ends = True

    async def _send(self, prompt: int, tokens: int) -> None:
        params = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
        ids = self._tokens.choices(
            range(FIRST_TOKEN, self._options.vocabulary), k=prompt
        )
        body = {"input_ids": ids, "stream": True, "sampling_params": params}
        stream = Stream(self.now(), tokens)
        self.streams.append(stream)
        last = b"{}"
        try:
            async with self._http.post(f"{self._url}/generate", json=body) as answer:
                answer.raise_for_status()
                async for line in answer.content:
                    if line.startswith(b"data: {"):
                        stream.stamps.append(self.now())
                        last = line[len(b"data: ") :]  # read later: others wait
        except aiohttp.ClientError as error:
            self.failures.append(repr(error))
            return
        end = json.loads(last)
        stream.tokens = end.get("meta_info", {}).get("completion_tokens", 0)
        if stream.tokens != tokens:
            self.failures.append(f"{stream.tokens} of {tokens} tokens: {end}")

    async def rest(self, seconds: float) -> Span:
        """From when to when the split stayed."""
        self.begin_again()
        began = self.now()
        await asyncio.sleep(seconds)
        return began, self.now()

    async def rotate(self, split: str) -> Rotation:
        prefill, decode = (int(part) for part in split.split("/"))
        body = {"prefill_percentage": prefill, "decode_percentage": decode}
        asked = self.now()
        async with self._http.post(
            f"{self._url}/semi_pd/reallocate", json=body
        ) as answer:
            if answer.status != 200:
                raise SystemExit(f"{split} was refused: {await answer.text()}")
        return Rotation(split, asked, self.now())


def percentile(values: Iterable[float], percent: float) -> float:
    ordered = sorted(values)
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def is_within(moment: float, spans: Iterable[Span]) -> bool:
    return any(begin <= moment < end for begin, end in spans)


def between(streams: list[Stream], *spans: Span) -> dict[str, float]:
    """What streams saw in spans of time."""
    gaps = [
        (gap, at)
        for one in streams
        for at, gap in one.gaps()
        if is_within(at - gap, spans)
    ]
    worst, at = max(gaps, default=(0.0, 0.0))
    first = [s.ttft_ms for s in streams if s.stamps and is_within(s.sent, spans)]
    return {
        "requests": len(first),
        "worst_gap_ms": 1e3 * worst,
        "worst_gap_at_s": at,
        "gap_p99_ms": 1e3 * percentile((gap for gap, _ in gaps), 99),
        "ttft_p50_ms": percentile(first, 50),
        "ttft_p90_ms": percentile(first, 90),
    }


def by_arrival(
    streams: list[Stream], rotations: list[Rotation]
) -> list[dict[str, float]]:
    """First tokens of all rotations, by when the request came."""
    spans = list(zip(MOMENTS_S, MOMENTS_S[1:], strict=False))
    found: dict[tuple[float, float], list[float]] = {span: [] for span in spans}
    for stream in (one for one in streams if one.stamps):
        for rotation in rotations:
            at = stream.sent - rotation.served
            if stream.sent >= rotation.asked and at < AFTER_S:
                span = next(span for span in spans if span[0] <= at < span[1])
                found[span].append(stream.ttft_ms)
                break
    return [
        {
            "from_s": begin,
            "to_s": end,
            "requests": len(ttft_ms),
            "ttft_p50_ms": percentile(ttft_ms, 50),
            "ttft_p90_ms": percentile(ttft_ms, 90),
        }
        for (begin, end), ttft_ms in found.items()
    ]


async def run(options: argparse.Namespace) -> dict[str, Any]:
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(
        timeout=timeout,
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
        read_bufsize=READ_BUFFER,
    ) as http:
        client = Client(options, http)
        load = miniature(LOADS[options.load], options.divide)
        sending = asyncio.create_task(client.keep_up(load))
        await asyncio.sleep(options.warm_up)
        steady = [await client.rest(options.steady)]
        rotations = []
        client.begin_again()
        for turn in range(options.times):
            if client.now() > options.longest:
                break
            split = options.splits[turn % len(options.splits)]
            rotations.append(await client.rotate(split))
            await asyncio.sleep(options.pause)
        await asyncio.sleep(AFTER_S)
        steady.append(await client.rest(options.steady))
        client.finish()
        await sending
    for one in rotations:
        seen = between(client.streams, (one.asked, one.served + AFTER_S))
        one.took_s = one.served - one.asked
        one.worst_gap_ms = seen["worst_gap_ms"]
        one.worst_gap_at_s = seen["worst_gap_at_s"] - one.served
        one.ttft_p90_ms = seen["ttft_p90_ms"]
    began, ended = rotations[0].asked, rotations[-1].served + AFTER_S
    return {
        "command": sys.argv,
        "requests": len(client.streams),
        "failures": client.failures,
        "began": client.began,
        "steady": between(client.streams, *steady),
        "steady, first split": between(client.streams, steady[0]),
        "steady, last split": between(client.streams, steady[1]),
        "while rotating": between(client.streams, (began, ended)),
        "by arrival": by_arrival(client.streams, rotations),
        "rotations": [asdict(one) for one in rotations],
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=30000)
    parser.add_argument("--load", choices=LOADS, default="mixed")
    parser.add_argument("--rate", type=float, default=12.0, help="requests a second")
    parser.add_argument("--divide", type=int, default=1, help="all lengths by this")
    parser.add_argument("--vocabulary", type=int, default=100_000, help="ids below")
    parser.add_argument("--splits", nargs="+", metavar="PREFILL/DECODE", required=True)
    parser.add_argument("--times", type=int, default=21)
    parser.add_argument("--warm-up", type=float, default=20.0, help="seconds")
    parser.add_argument("--steady", type=float, default=20.0, help="seconds, twice")
    parser.add_argument("--pause", type=float, default=5.0, help="seconds")
    parser.add_argument("--longest", type=float, default=1e9, help="seconds, then stop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> int:
    options = parse()
    if len(options.splits) == 2 and options.times % 2 == 0:
        print("an even number of rotations ends with the split that it began with")
    outcome = asyncio.run(run(options))
    options.out.write_text(json.dumps(outcome, indent=1))
    for name in outcome:
        if not name.startswith(("steady", "while")):
            continue
        print(name, {key: round(value, 1) for key, value in outcome[name].items()})
    for part in outcome["by arrival"]:
        print({key: round(value, 1) for key, value in part.items()})
    for one in outcome["rotations"]:
        print(
            f"{one['split']}: {one['took_s']:.1f} s, worst gap "
            f"{one['worst_gap_ms']:.0f} ms at {one['worst_gap_at_s']:+.2f} s, "
            f"TTFT P90 {one['ttft_p90_ms']:.0f} ms"
        )
    print(outcome["requests"], "requests, failed:", outcome["failures"][:3])
    return 1 if outcome["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
