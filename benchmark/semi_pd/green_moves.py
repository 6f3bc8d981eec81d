#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What moving the split costs the streams that run meanwhile: for a server that is up.

The server runs with ``--enable-semi-pd`` and a backend that moves the split. First the
streams run with the split at rest, then again while the split moves as fast as the
server takes it; both without other load, and beside a load of prompts. Compared are the
gaps between tokens, and the tokens: one stream runs at a time for those, as the size of
a batch may change what a greedy request answers. Beside prompts its own prompt shares a
batch with others, so what changes at rest has to be subtracted there.

    python benchmark/semi_pd/green_moves.py --port 31000 --out moves.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TIMEOUT_S = 300.0
VOCABULARY = range(10, 30_000)
PERCENTILES = (50, 90, 99, 100)
SHARES = tuple(range(20, 85, 5))


@dataclass
class Stream:
    """The tokens of one request, and the milliseconds between them."""

    tokens: list[int] = field(default_factory=list)
    gaps_ms: list[float] = field(default_factory=list)


class Server:
    """One Semi-PD server."""

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url

    def post(self, path: str, body: dict[str, Any]) -> Any:
        data = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._base_url + path, data, headers)
        return urllib.request.urlopen(request, timeout=TIMEOUT_S)

    def stream(self, prompt: list[int], count: int) -> Stream:
        """One greedy request of exactly ``count`` tokens."""
        sampling = {"temperature": 0, "max_new_tokens": count, "ignore_eos": True}
        body = {"input_ids": prompt, "sampling_params": sampling, "stream": True}
        done, stamps = Stream(), []
        with self.post("/generate", body) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    stamps.append(time.perf_counter())
                    done.tokens = json.loads(line[6:])["output_ids"]
        done.gaps_ms = [1e3 * (b - a) for a, b in itertools.pairwise(stamps)]
        return done

    def status(self) -> dict[str, Any]:
        with urllib.request.urlopen(
            f"{self._base_url}/semi_pd/status", timeout=TIMEOUT_S
        ) as answer:
            document: dict[str, Any] = json.load(answer)
            return document

    def move(self, prefill: int) -> float:
        """Move the split; milliseconds until the server said that it is in force."""
        began = time.perf_counter()
        split = {"prefill_percentage": prefill, "decode_percentage": 100 - prefill}
        self.post("/semi_pd/reallocate", split).close()
        return 1e3 * (time.perf_counter() - began)


@contextmanager
def prompts(server: Server, args: argparse.Namespace) -> Iterator[None]:
    """A steady load of prompts that want one token each, so decode has none of it."""
    source, ended = random.Random(args.seed + 1), threading.Event()

    def send() -> None:
        with ThreadPoolExecutor(32) as pool:
            while not ended.wait(source.expovariate(args.rate)):
                prompt = source.choices(VOCABULARY, k=args.prompt)
                pool.submit(server.stream, prompt, 1)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        ended.set()
        sender.join()


class Mover:
    """Moves the split again and again, to a share drawn at random."""

    def __init__(self, server: Server, seed: int) -> None:
        self._server, self._source = server, random.Random(seed)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.took_ms: list[float] = []

    def _run(self) -> None:
        while not self._ended.is_set():
            self.took_ms.append(self._server.move(self._source.choice(SHARES)))

    def __enter__(self) -> Mover:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def percentiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    last = len(ordered) - 1
    return {f"p{p}": round(ordered[last * p // 100], 3) for p in PERCENTILES}


def together(server: Server, args: argparse.Namespace) -> list[float]:
    """Gaps of several streams at once."""
    source = random.Random(args.seed + 2)
    with ThreadPoolExecutor(args.streams) as pool:
        runs = [
            pool.submit(server.stream, source.choices(VOCABULARY, k=200), args.tokens)
            for _ in range(args.streams)
        ]
        return [gap for run in runs for gap in run.result().gaps_ms]


@dataclass
class Phase:
    """One stream after another, then several at once, again and again."""

    streams: int = 0
    changed: int = 0
    gaps_ms: list[float] = field(default_factory=list)
    together_gaps_ms: list[float] = field(default_factory=list)

    def round(self, server: Server, args: argparse.Namespace, right: list[int]) -> None:
        prompt = random.Random(args.seed).choices(VOCABULARY, k=200)
        stream = server.stream(prompt, args.tokens)
        self.streams += 1
        self.changed += stream.tokens != right
        self.gaps_ms += stream.gaps_ms
        self.together_gaps_ms += together(server, args)

    def as_dict(self) -> dict[str, Any]:
        return {
            "streams_compared": self.streams,
            "streams_changed": self.changed,
            "one_stream_gap_ms": percentiles(self.gaps_ms),
            "streams_gap_ms": percentiles(self.together_gaps_ms),
        }


def at_rest_and_moving(
    server: Server, args: argparse.Namespace, right: list[int]
) -> dict[str, Any]:
    rest, moving = Phase(), Phase()
    for _ in range(args.rounds):
        rest.round(server, args, right)
    with Mover(server, args.seed) as mover:
        while moving.streams < args.rounds or len(mover.took_ms) < args.moves:
            moving.round(server, args, right)
            print(f"{len(mover.took_ms)} moves", file=sys.stderr)
    return {
        "at_rest": rest.as_dict(),
        "moving": moving.as_dict(),
        "moves": len(mover.took_ms),
        "move_ms": percentiles(mover.took_ms),
    }


def measure(server: Server, args: argparse.Namespace) -> dict[str, Any]:
    prompt = random.Random(args.seed).choices(VOCABULARY, k=200)
    server.move(50)
    server.stream(prompt, args.tokens)  # its prefix is in the cache from here on
    right = server.stream(prompt, args.tokens).tokens
    alone = at_rest_and_moving(server, args, right)
    with prompts(server, args):
        loaded = at_rest_and_moving(server, args, right)
        status = server.status()
    return {
        "args": vars(args),
        "backend": status["partition_backend"],
        "alone": alone,
        "beside_prompts": loaded,
        "process_rotation_status": status["process_rotation_status"],
        "realised_sm_share": status["realised_sm_share"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--moves", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=400, help="of each stream")
    parser.add_argument("--rate", type=float, default=8.0, help="prompts a second")
    parser.add_argument("--prompt", type=int, default=1024, help="tokens of a prompt")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    result = measure(Server(f"http://127.0.0.1:{args.port}"), args)
    text = json.dumps(result, indent=1, default=str)
    print(text)
    if args.out:
        args.out.write_text(text)
    return int(result["alone"]["moving"]["streams_changed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
