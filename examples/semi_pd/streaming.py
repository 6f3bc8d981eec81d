# SPDX-License-Identifier: Apache-2.0
"""Concurrent streaming requests to ``/generate``, and what their clients see."""

from __future__ import annotations

import json
import math
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Stream:
    """One answer; times in milliseconds."""

    prompt_tokens: int
    output_tokens: int
    ttft_ms: float
    tpot_ms: float
    longest_gap_ms: float
    text: str


def stream(url: str, prompt: str, *, max_new_tokens: int) -> Stream:
    """Send one greedy request and read its tokens as they come."""
    body = {
        "text": prompt,
        "sampling_params": {"temperature": 0, "max_new_tokens": max_new_tokens},
        "stream": True,
    }
    request = urllib.request.Request(
        f"{url}/generate",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    arrivals = [time.monotonic()]
    answer = {}
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
        for line in reply:
            data = line.decode().strip().removeprefix("data: ")
            if data and data != "[DONE]":
                answer = json.loads(data)
                arrivals.append(time.monotonic())
    meta = answer["meta_info"]
    sent, first, last = arrivals[0], arrivals[1], arrivals[-1]
    tokens = meta["completion_tokens"]
    gaps = [b - a for a, b in zip(arrivals[1:], arrivals[2:], strict=False)]
    return Stream(
        prompt_tokens=meta["prompt_tokens"],
        output_tokens=tokens,
        ttft_ms=1e3 * (first - sent),
        tpot_ms=1e3 * (last - first) / (tokens - 1) if tokens > 1 else math.nan,
        longest_gap_ms=1e3 * max(gaps, default=math.nan),
        text=answer["text"],
    )


def stream_all(
    url: str, prompts: Sequence[str], *, max_new_tokens: int
) -> list[Stream]:
    """Send all prompts at once; answers in the order of the prompts."""
    send = partial(stream, url, max_new_tokens=max_new_tokens)
    with ThreadPoolExecutor(len(prompts)) as threads:
        return list(threads.map(send, prompts))


def table(streams: Sequence[Stream]) -> str:
    """One line for each request."""
    rows = ["request  prompt  output    TTFT ms    TPOT ms  longest gap ms"]
    for place, one in enumerate(streams, start=1):
        rows.append(
            f"{place:7d}{one.prompt_tokens:8d}{one.output_tokens:8d}"
            f"{one.ttft_ms:11.1f}{one.tpot_ms:11.1f}{one.longest_gap_ms:16.1f}"
        )
    return "\n".join(rows)
