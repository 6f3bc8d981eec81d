#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What long prompts do to running streams: load for a server that is up.

Works against any SGLang server, with or without Semi-PD, and needs no tokenizer:
prompts are random token ids of a fixed seed. Prints the time of the first request, the
gap between tokens of streams alone, the time to the first token, and the gaps of
streams beside long prompts. With ``--reference`` it also compares the answers with
those that an earlier run wrote with ``--out``.

    python benchmark/semi_pd/stall.py --port 31000 --out plain.json
    python benchmark/semi_pd/stall.py --port 31001 --reference plain.json
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

REQUEST_TIMEOUT_S = 120.0
VOCABULARY = range(10, 120_000)

Answers = list[list[int]]


class Load:
    """Requests to one server, with prompts of one random generator."""

    def __init__(self, base_url: str, seed: int) -> None:
        self._url = f"{base_url}/generate"
        self._random = random.Random(seed)

    def prompt(self, length: int) -> list[int]:
        return self._random.choices(VOCABULARY, k=length)

    def tokens(self, prompt: list[int], count: int) -> list[int]:
        """The answer to one prompt."""
        with self._post(prompt, count, stream=False) as answer:
            tokens: list[int] = json.load(answer)["output_ids"]
            return tokens

    def gaps(self, prompt: list[int], count: int) -> list[float]:
        """Milliseconds between the events of one stream."""
        stamps = []
        with self._post(prompt, count, stream=True) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    stamps.append(time.perf_counter())
        return [1e3 * (b - a) for a, b in zip(stamps, stamps[1:], strict=False)]

    def first_token_ms(self, prompt: list[int]) -> float:
        """Time until an answer of one token."""
        started = time.perf_counter()
        self.tokens(prompt, 1)
        return 1e3 * (time.perf_counter() - started)

    def _post(self, prompt: list[int], count: int, *, stream: bool) -> Any:
        body = {
            "input_ids": prompt,
            "stream": stream,
            "sampling_params": {
                "temperature": 0,
                "max_new_tokens": count,
                "ignore_eos": True,
            },
        }
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)
        return urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S)


def answers(load: Load) -> tuple[Answers, Answers]:
    """24 prompts of 5 to 3000 tokens, one after the other and twelve at a time."""
    prompts = [load.prompt(length) for length in (5, 64, 500, 3000) * 6]
    started = time.perf_counter()
    load.tokens(prompts[0], 24)
    print(f"first request {time.perf_counter() - started:.2f} s")
    in_turn = [load.tokens(prompt, 24) for prompt in prompts]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda prompt: load.tokens(prompt, 24), prompts))
    return in_turn, together


def agreement(ours: Answers, theirs: Answers) -> str:
    """How many answers, and how many tokens, are the same."""
    exact = sum(a == b for a, b in zip(ours, theirs, strict=True))
    same = sum(
        a == b
        for p, q in zip(ours, theirs, strict=True)
        for a, b in zip(p, q, strict=True)
    )
    return f"{exact} of {len(ours)} answers, {same / sum(map(len, ours)):.3f} of tokens"


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, int(len(ordered) * share) - 1)]


def stream_gaps(load: Load, streams: int, tokens: int) -> list[float]:
    """The gaps of streams of 256-token prompts that run together."""
    prompts = [load.prompt(256) for _ in range(streams)]
    with ThreadPoolExecutor(streams) as pool:
        gaps = pool.map(lambda prompt: load.gaps(prompt, tokens), prompts)
        return [gap for stream in gaps for gap in stream]


def report(name: str, values: Sequence[float]) -> None:
    """One line of figures in milliseconds."""
    print(
        f"{name}: P50 {percentile(values, 0.5):.2f} P99 {percentile(values, 0.99):.2f} "
        f"max {max(values):.2f} ms"
    )


def stall(load: Load) -> None:
    """Six long prompts in turn beside sixteen streams."""
    prompts = [load.prompt(8000) for _ in range(6)]
    gaps: list[float] = []
    streams = threading.Thread(target=lambda: gaps.extend(stream_gaps(load, 16, 300)))
    streams.start()
    time.sleep(0.5)
    first_tokens = [load.first_token_ms(prompt) for prompt in prompts]
    streams.join()
    report("gap of 16 streams beside 8000-token prompts", gaps)
    print("those prompts' first token:", *(f"{ms:.0f}" for ms in first_tokens), "ms")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="localhost", help="default: localhost")
    parser.add_argument("--port", type=int, default=30000, help="default: 30000")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts; default 0")
    parser.add_argument("--out", type=Path, help="write the answers here")
    parser.add_argument("--reference", type=Path, help="answers to compare with")
    options = parser.parse_args()
    load = Load(f"http://{options.host}:{options.port}", options.seed)
    in_turn, together = answers(load)
    print("together as in turn:", agreement(together, in_turn))
    if options.reference:
        reference = json.loads(options.reference.read_text())
        print("in turn as reference:", agreement(in_turn, reference["in_turn"]))
        print("together as reference:", agreement(together, reference["together"]))
    if options.out:
        found = {"in_turn": in_turn, "together": together}
        options.out.write_text(json.dumps(found))
    for streams in (1, 16):
        report(f"gap of {streams} alone", stream_gaps(load, streams, 128))
    first_tokens = [load.first_token_ms(load.prompt(1024)) for _ in range(8)]
    report("first token of 1024", first_tokens)
    stall(load)
    return 0


if __name__ == "__main__":
    sys.exit(main())
