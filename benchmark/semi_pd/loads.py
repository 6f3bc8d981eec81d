# SPDX-License-Identifier: Apache-2.0
"""What a server is asked: lengths and arrival times, the same for every system.

Arrivals are Poisson. Lengths are uniform between half and one and a half times their
mean, where nothing else is said. One seed gives the same requests for every system;
the tokens of prompts differ with load, rate and seed, so that no run finds another's
prompts in the prefix cache.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

FIRST_TOKEN = 10


@dataclass(frozen=True, slots=True)
class Request:
    """One request: when it comes, in seconds, and how long it is, in tokens."""

    arrival_s: float
    input_len: int
    output_len: int


Shape = Callable[[random.Random, float], tuple[int, int]]
"""Lengths of prompt and answer, at a share of the run that has passed (0 to 1)."""


@dataclass(frozen=True, slots=True)
class Load:
    """A kind of traffic.

    Attributes:
        rates: requests a second that are worth trying on an H200 with an 8B model.
    """

    name: str
    what: str
    shape: Shape
    rates: tuple[float, ...]

    def requests(self, rate: float, seconds: float, seed: int) -> list[Request]:
        """The requests of one run."""
        source = random.Random(f"{self.name} {rate} {seed}")
        return list(self._arriving(source, rate, seconds))

    def _arriving(
        self, source: random.Random, rate: float, seconds: float
    ) -> Iterator[Request]:
        now = source.expovariate(rate)
        while now < seconds:
            yield Request(now, *self.shape(source, now / seconds))
            now += source.expovariate(rate)

    def prompts(
        self, requests: list[Request], *, rate: float, seed: int, vocabulary: int
    ) -> list[list[int]]:
        """Random token ids for each request."""
        source = random.Random(f"tokens {self.name} {rate} {seed}")
        ids = range(FIRST_TOKEN, vocabulary)
        return [source.choices(ids, k=request.input_len) for request in requests]


def _around(source: random.Random, mean: int) -> int:
    return source.randint(mean // 2, mean + mean // 2)


def _both_around(input_mean: int, output_mean: int) -> Shape:
    def shape(source: random.Random, passed: float) -> tuple[int, int]:
        return _around(source, input_mean), _around(source, output_mean)

    return shape


def _long_context(source: random.Random, passed: float) -> tuple[int, int]:
    if source.random() < 0.1:
        return source.randint(8000, 32000), _around(source, 200)
    return _around(source, 500), _around(source, 200)


def _shifting(source: random.Random, passed: float) -> tuple[int, int]:
    if passed < 0.5:
        return _around(source, 3000), _around(source, 50)
    return _around(source, 250), _around(source, 400)


LOADS = {
    load.name: load
    for load in (
        Load("chat", "in 250, out 230", _both_around(250, 230), (30, 60)),
        Load("mixed", "in 1024, out 256", _both_around(1024, 256), (12, 18)),
        Load("long", "in 3000, out 150", _both_around(3000, 150), (5, 8)),
        Load(
            "long-context",
            "one in ten in 8000 to 32000, the rest in 500; out 200",
            _long_context,
            (3, 6),
        ),
        Load(
            "shifting",
            "first half in 3000, out 50; second half in 250, out 400",
            _shifting,
            (6, 10),
        ),
    )
}


def miniature(load: Load, factor: int) -> Load:
    """The same traffic with lengths divided by ``factor``, to try a benchmark out."""

    def shape(source: random.Random, passed: float) -> tuple[int, int]:
        lengths = load.shape(source, passed)
        return max(1, lengths[0] // factor), max(2, lengths[1] // factor)

    return Load(load.name, f"{load.what}; all / {factor}", shape, load.rates)
