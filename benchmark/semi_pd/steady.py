# SPDX-License-Identifier: Apache-2.0
"""A server without competition: decode steps, first tokens, and its answers.

A decode step is not taken from a client's gaps, which hold its own delays: a batch of
requests is answered twice, unstreamed, with few and with many tokens, and the times'
difference is divided by the tokens'.
"""

from __future__ import annotations

import json
import random
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from records import percentile

TIMEOUT_S = 120.0
FEW, MANY = 32, 160
PROMPT_OF_STEP = 256
PROMPT_LENGTHS = (5, 64, 500, 3000)
ANSWER = 24

Tokens = list[int]


class Steady:
    """Measures one server, one thing at a time.

    Args:
        vocabulary: prompts are random token ids below it.
        shrink: lengths are divided by it, to try the benchmark out.
    """

    def __init__(
        self, url: str, *, vocabulary: int, seed: int, shrink: int = 1
    ) -> None:
        self._url, self._ids = f"{url}/generate", range(10, vocabulary)
        self._random = random.Random(seed)
        self._shrink = shrink

    def step_ms(self, batch: int, repeats: int = 3) -> float:
        """Median time of a decode step with ``batch`` requests running."""
        few, many = FEW // self._shrink + 1, MANY // self._shrink + 1
        found = []
        for _ in range(repeats):
            short, long = (self._batch_s(batch, count) for count in (few, many))
            found.append(1e3 * (long - short) / (many - few))
        return percentile(found, 0.5)

    def first_token_ms(self, length: int, repeats: int = 30) -> dict[str, float]:
        """Time to the first piece of a stream, with nothing else running."""
        found = [self._first_piece_ms(self._prompt(length)) for _ in range(repeats)]
        return {f"p{share}": percentile(found, share / 100) for share in (50, 90, 99)}

    def answer_in_turn(self, lengths: Sequence[int], requests: int, count: int) -> None:
        """Have prompts of these lengths answered, each when the last one has been."""
        for _ in range(requests):
            self._tokens(self._prompt(self._random.choice(lengths)), count)

    def answers(self, repeats: int) -> dict[str, list[list[Tokens]]]:
        """Greedy answers to the same prompts: one by one, and twelve at a time."""
        prompts = [self._prompt(length) for length in PROMPT_LENGTHS * 6]
        ask = lambda prompt: self._tokens(prompt, ANSWER)  # noqa: E731
        found: dict[str, list[list[Tokens]]] = {"in_turn": [], "together": []}
        for _ in range(repeats):
            found["in_turn"].append([ask(prompt) for prompt in prompts])
            with ThreadPoolExecutor(12) as pool:
                found["together"].append(list(pool.map(ask, prompts)))
        return found

    def _batch_s(self, batch: int, count: int) -> float:
        prompts = [self._prompt(PROMPT_OF_STEP) for _ in range(batch)]
        started = time.perf_counter()
        with ThreadPoolExecutor(batch) as pool:
            list(pool.map(lambda prompt: self._tokens(prompt, count), prompts))
        return time.perf_counter() - started

    def _prompt(self, length: int) -> Tokens:
        return self._random.choices(self._ids, k=max(1, length // self._shrink))

    def _tokens(self, prompt: Tokens, count: int) -> Tokens:
        with self._post(prompt, count, stream=False) as answer:
            tokens: Tokens = json.load(answer)["output_ids"]
            return tokens

    def _first_piece_ms(self, prompt: Tokens) -> float:
        started = time.perf_counter()
        with self._post(prompt, 4, stream=True) as answer:
            pieces = (line for line in answer if line.startswith(b"data: {"))
            next(pieces)
            first = time.perf_counter()
            for _ in pieces:
                pass
        return 1e3 * (first - started)

    def _post(self, prompt: Tokens, count: int, *, stream: bool) -> Any:
        sampling = {"temperature": 0, "max_new_tokens": count, "ignore_eos": True}
        body = {"input_ids": prompt, "stream": stream, "sampling_params": sampling}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)
        return urllib.request.urlopen(request, timeout=TIMEOUT_S)


def agreement(left: Sequence[Tokens], right: Sequence[Tokens]) -> dict[str, float]:
    """How many answers, and which share of all tokens, are the same."""
    pairs = list(zip(left, right, strict=True))
    same = sum(a == b for x, y in pairs for a, b in zip(x, y, strict=True))
    return {
        "answers": sum(x == y for x, y in pairs),
        "of": len(pairs),
        "tokens": same / sum(len(x) for x, _ in pairs),
    }
