# SPDX-License-Identifier: Apache-2.0
"""A load that turns between prefill-heavy and decode-heavy, and how heavy it is made.

A server's speed is not known beforehand, so rates and the TPOT target follow from three
short probes, by rules that are fixed here:

1. Prompts of the prefill-heavy part saturate the split that favours prefill. Its
   prompt tokens per second are the capacity; the prefill-heavy rate is
   ``PREFILL_LOAD`` of it.
2. The TPOT target is ``TPOT_ROOM`` times the TPOT (P90) of that probe.
3. The decode-heavy load runs at two rates under the split that favours decode. Its rate
   is the one at which TPOT (P90) would be ``DECODE_LOAD`` of the target, if one over
   TPOT falls in a straight line as the rate rises.

So the split for either part can carry it, with something to spare.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from loads import FIRST_TOKEN, Request
from records import Record, percentile

PREFILL_LOAD = 0.96
DECODE_LOAD = 0.82
TPOT_ROOM = 1.15
DECODE_PROBES = (0.4, 0.6)
"""Prompt tokens of the decode-heavy probes, relative to the capacity."""
DECODE_BOUNDS = (0.3, 0.75)
"""The same, of the decode-heavy load at least and at most."""


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
DECODE_HEAVY = Part(800, 400)


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


def capacity(first_tokens: Sequence[tuple[float, int]], warm_up_s: float) -> float:
    """Prompt tokens per second of a saturated server.

    Args:
        first_tokens: when each prompt had its first token, seconds, and its length.
    """
    counted = [(when, length) for when, length in first_tokens if when > warm_up_s]
    if len(counted) < 2:
        raise ValueError("the probe was too short for two prompts after its warm-up")
    ends_s = max(when for when, _ in counted)
    begins_s = min(when for when, _ in counted)
    tokens = sum(length for when, length in counted if when > begins_s)
    return tokens / (ends_s - begins_s)


def tpot_p90_ms(records: Sequence[Record], warm_up_s: float) -> float:
    """TPOT (P90) of what arrived after the warm-up and succeeded, milliseconds."""
    counted = [one for one in records if one.success and one.arrival_s > warm_up_s]
    if not counted:
        raise ValueError("no request of the probe ended")
    return percentile([one.tpot_ms for one in counted], 0.9)


def rate_for(rates: Sequence[float], tpots_ms: Sequence[float], wanted: float) -> float:
    """The rate at which TPOT would be ``wanted``; infinity where it does not rise."""
    low, high = (1 / tpot for tpot in tpots_ms)
    if not high < low:
        return float("inf")
    return rates[0] + (low - 1 / wanted) / (low - high) * (rates[1] - rates[0])


def within(rate: float, tokens_per_s: float, part: Part) -> float:
    """The rate, within ``DECODE_BOUNDS`` of the capacity."""
    least, most = (bound * tokens_per_s / part.input_len for bound in DECODE_BOUNDS)
    return min(most, max(least, rate))


def _around(source: random.Random, mean: int) -> int:
    return source.randint(max(1, mean // 2), mean + mean // 2)
