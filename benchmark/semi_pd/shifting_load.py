# SPDX-License-Identifier: Apache-2.0
"""A load that turns between prefill-heavy and decode-heavy.

How heavy both parts are made: ``shifting_probe``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from loads import FIRST_TOKEN, Request


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of traffic: mean lengths, tokens."""

    input_len: int
    output_len: int

    def shrunk(self, factor: int) -> Part:
        """The same with lengths divided, to try a benchmark out."""
        return Part(max(2, self.input_len // factor), max(4, self.output_len // factor))

    def draw(self, source: random.Random) -> tuple[int, int]:
        """Lengths between half and one and a half times the mean."""
        return _around(source, self.input_len), max(2, _around(source, self.output_len))


PREFILL_HEAVY = Part(1500, 16)
DECODE_HEAVY = Part(600, 300)
"""Chosen in simulation, so that the splits for either part differ: with prompts of 800
and answers of 400 tokens one split carried both parts."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Poisson arrivals of one part, at a rate per second, for some seconds."""

    part: Part
    rate: float
    seconds: float


def arrivals(stretches: Sequence[Stretch], seed: int) -> list[Request]:
    """The requests of stretches that follow each other."""
    source = random.Random(f"shifting {seed}")
    found, begins_s = [], 0.0
    for stretch in stretches:
        ends_s = begins_s + stretch.seconds
        now = begins_s + source.expovariate(stretch.rate)
        while now < ends_s:
            found.append(Request(now, *stretch.part.draw(source)))
            now += source.expovariate(stretch.rate)
        begins_s = ends_s
    return found


class Prompts:
    """Random token ids; two prompts of a run have no beginning in common.

    Args:
        vocabulary: token ids are below it.
    """

    def __init__(self, vocabulary: int, seed: int, size: int = 400_000) -> None:
        source = random.Random(f"prompts {seed}")
        self._ids = source.choices(range(FIRST_TOKEN, vocabulary), k=size)
        self._source = source

    def draw(self, length: int) -> list[int]:
        """A prompt of this many tokens."""
        begin = self._source.randrange(len(self._ids) - length)
        return self._ids[begin : begin + length]


def _around(source: random.Random, mean: int) -> int:
    return source.randint(max(1, mean // 2), mean + mean // 2)
