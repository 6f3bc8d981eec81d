#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How long prompts wait for each other, with SGLang's forwards and with prefill's.

The queue alone, without a server: arrivals and lengths of the benchmark's loads, and a
GPU that computes so many tokens a second. The rules are the simulator's
(``simulation/forwards.py``), prefill's the code that serves. First tokens in
milliseconds, P50 / P90 / P99; the share within 200 ms; the same of prompts of 8000
tokens and more.

    python benchmark/semi_pd/prompt_queue.py long-context:3,6 --tokens-per-s 28000
"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from dataclasses import dataclass

from compare import load_at
from loads import Load, Request
from records import percentile
from sglang.semi_pd.simulation.forwards import Forward, as_prefill, as_sglang

SGLANG_CHUNKS = (8192, 2048, 512)
FORWARD_S = 0.002
TARGET_S = 0.2
LONG = 8000


@dataclass
class Prompt:
    """One that waits, or of which a part is computed."""

    request: Request
    left: int


def first_tokens(
    requests: list[Request], forward: Forward, tokens_per_s: float
) -> list[tuple[Request, float]]:
    """Each request and how long its first token took, in seconds."""
    coming, waiting, now, found = deque(requests), list[Prompt](), 0.0, []
    while coming or waiting:
        if not waiting:
            now = max(now, coming[0].arrival_s)
        while coming and coming[0].arrival_s <= now:
            request = coming.popleft()
            waiting.append(Prompt(request, request.input_len))
        is_begun = waiting[0].left < waiting[0].request.input_len
        taken = forward([one.left for one in waiting], is_begun=is_begun)
        now += FORWARD_S + sum(tokens for _, tokens in taken) / tokens_per_s
        for prompt, tokens in [(waiting[place], tokens) for place, tokens in taken]:
            prompt.left -= tokens
            if not prompt.left:
                waiting.remove(prompt)
                found.append((prompt.request, now - prompt.request.arrival_s))
        waiting.sort(key=lambda one: one.left == one.request.input_len)
    return found


def told(found: list[tuple[Request, float]]) -> str:
    all_s = [s for _, s in found]
    long_s = [s for request, s in found if request.input_len >= LONG]
    inside = sum(s <= TARGET_S for s in all_s) / len(all_s)
    parts = [_percentiles(all_s), f"{inside:.3f}"]
    return ", ".join([*parts, *([f"long {_percentiles(long_s)}"] if long_s else [])])


def _percentiles(values: list[float]) -> str:
    return " / ".join(f"{1e3 * percentile(values, p):.0f}" for p in (0.5, 0.9, 0.99))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("loads", nargs="+", type=load_at, metavar="NAME[:RATE,RATE]")
    parser.add_argument("--tokens-per-s", type=float, default=20_000)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    load: Load
    for load in options.loads:
        for rate in load.rates:
            print(f"{load.name} {rate:g}/s")
            requests = load.requests(rate, options.seconds, options.seed)
            rules = {f"SGLang, {chunk}": as_sglang(chunk) for chunk in SGLANG_CHUNKS}
            for name, rule in {**rules, "prefill": as_prefill()}.items():
                found = first_tokens(requests, rule, options.tokens_per_s)
                print(f"  {name:<13} {told(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
