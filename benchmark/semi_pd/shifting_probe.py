# SPDX-License-Identifier: Apache-2.0
"""How heavy the load of ``shifting.py`` is made.

A server's speed is not known beforehand, so rates and the TPOT target follow from
short probes, by rules that are fixed here:

1. Prompts of the prefill-heavy part saturate the split that favours prefill. Its
   prompt tokens per second are the capacity; the prefill-heavy rate is
   ``PREFILL_LOAD`` of it: a queue that forms at the turn has to drain again.
2. The TPOT target is ``TPOT_ROOM`` times the TPOT (P90) of that probe.
3. Under the split that favours decode, streams of decode-heavy requests, one after the
   other, are kept up: first few, then more. How long a request takes gives the rate
   that keeps so many busy (Little's law). The decode-heavy rate is the one at which
   TPOT (P90) would be ``DECODE_LOAD`` of its target, or TTFT (P90) ``TTFT_LOAD`` of
   its, whichever is less: this split's prefill saturates earlier than the other's.

So the split for either part can carry it, with something to spare. Streams are in their
steady state as soon as each has been through one request. Arrivals at a given rate are
not: near what a server holds, TPOT goes on rising for a minute.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean, linear_regression

from loads import Request
from records import Record, percentile
from shifting_client import Run, Server, keep_busy
from shifting_load import Part, Prompts

PREFILL_LOAD = 0.9
DECODE_LOAD = 0.75
"""On an H200 arrivals at the rate for 0.86 had a TPOT a fifth above what streams that
ask one after the other had at it: too much for every split."""
TTFT_LOAD = 0.5
TPOT_ROOM = 1.15
DECODE_PROBES = (0.4, 0.6)
"""Prompt tokens of the decode-heavy probes, relative to the capacity, where TPOT is as
wanted: so many streams they have."""
DECODE_BOUNDS = (0.3, 0.75)
"""Prompt tokens of the decode-heavy load, relative to the capacity."""
SPREAD = 1 / 3
"""Part of a probe over which its streams begin: about the time of one request. All at
once they would wait for each other's prompts, and end together."""
WARM_UP_S = 2.0
PREFILL_STREAMS = 24
LEVEL_PROBES = 1.5
"""How long each number of decode-heavy streams runs, relative to the first probe."""


def capacity(first_tokens: Sequence[tuple[float, int]], warm_up_s: float) -> float:
    """Prompt tokens per second of a saturated server.

    The slope of all that has been served over time: prompts are done in chunks, and
    which part of a chunk lies at either end is chance.

    Args:
        first_tokens: when each prompt had its first token, seconds, and its length.
    """
    counted = sorted(one for one in first_tokens if one[0] > warm_up_s)
    if len(counted) < 2 or counted[0][0] == counted[-1][0]:
        raise ValueError("the probe was too short for two prompts after its warm-up")
    served = accumulate(length for _, length in counted)
    return linear_regression([when for when, _ in counted], list(served)).slope


def tpot_p90_ms(records: Sequence[Record], warm_up_s: float) -> float:
    """TPOT (P90) of what arrived after the warm-up and succeeded, milliseconds."""
    counted = [one for one in records if one.success and one.arrival_s > warm_up_s]
    if not counted:
        raise ValueError("no request of the probe ended")
    return percentile([one.tpot_ms for one in counted], 0.9)


@dataclass(frozen=True, slots=True)
class Level:
    """A server that is kept busy by so many streams.

    Attributes:
        stays_s: mean time from sending a request to its last token.
        ttft_ms: P90.
        tpot_ms: P90.
    """

    streams: int
    stays_s: float
    ttft_ms: float
    tpot_ms: float

    @classmethod
    def of(cls, streams: int, records: Sequence[Record], mean_output: int) -> Level:
        """What requests say that began and ended while all streams ran.

        Short ones are likelier to be among them, so the time of a request is put
        together for ``mean_output`` tokens.
        """
        done = [one for one in records if one.success]
        if not done:
            raise ValueError(f"no request of the probe with {streams} streams ended")
        ttft_s = fmean(one.ttft_ms for one in done) / 1e3
        tpot_s = fmean(one.tpot_ms for one in done) / 1e3
        return cls(
            streams,
            stays_s=ttft_s + tpot_s * (mean_output - 1),
            ttft_ms=percentile([one.ttft_ms for one in done], 0.9),
            tpot_ms=percentile([one.tpot_ms for one in done], 0.9),
        )


def streams_for(share: float, tokens_per_s: float, part: Part, tpot_ms: float) -> int:
    """How many streams would carry this part of the capacity at that TPOT."""
    rate = share * tokens_per_s / part.input_len
    return max(2, round(rate * part.output_len * tpot_ms / 1e3))


def starts(streams: Sequence[int], level_s: float) -> list[float]:
    """When each stream begins: so many run in each of several levels, ever more."""
    found: list[float] = []
    for number, wanted in enumerate(streams):
        new = max(0, wanted - len(found))
        apart_s = SPREAD * level_s / max(1, new)
        found += [number * level_s + apart_s * one for one in range(new)]
    return found


def at_level(records: Sequence[Record], number: int, level_s: float) -> list[Record]:
    """Those that began and ended while all streams of that level ran."""
    begins_s, ends_s = (number + SPREAD) * level_s, (number + 1) * level_s
    return [
        one
        for one in records
        if one.arrival_s >= begins_s
        and one.arrival_s + (one.ttft_ms + one.tpot_ms * (one.output_len - 1)) / 1e3
        <= ends_s
    ]


def levels_of(
    streams: Sequence[int], records: Sequence[Record], level_s: float, part: Part
) -> tuple[Level, ...]:
    """Each number of streams, from the requests of all of them."""
    return tuple(
        Level.of(count, at_level(records, number, level_s), part.output_len)
        for number, count in enumerate(streams)
    )


def rate_for(levels: Sequence[Level], ttft_ms: float, tpot_ms: float) -> float:
    """The rate at which one of both would be as wanted; infinity if neither rises.

    Latencies and the time of a request are taken to rise in straight lines.
    """
    few, many = levels
    way = min(
        _way(few.ttft_ms, many.ttft_ms, ttft_ms),
        _way(few.tpot_ms, many.tpot_ms, tpot_ms),
    )
    if math.isinf(way):
        return way
    streams = few.streams + way * (many.streams - few.streams)
    stays_s = few.stays_s + way * (many.stays_s - few.stays_s)
    return max(0.0, streams) / stays_s if stays_s > 0 else 0.0


def _way(low: float, high: float, wanted: float) -> float:
    return (wanted - low) / (high - low) if high > low else math.inf


def within(rate: float, tokens_per_s: float, part: Part) -> float:
    """The rate, within ``DECODE_BOUNDS`` of the capacity."""
    least, most = (bound * tokens_per_s / part.input_len for bound in DECODE_BOUNDS)
    return min(most, max(least, rate))


@dataclass(frozen=True, slots=True)
class Probed:
    """What the probes of a server gave; the runs are kept for its records.

    Attributes:
        tokens_per_s: prompt tokens, the capacity.
        wanted_rate: of decode-heavy requests, before ``within``.
    """

    tokens_per_s: float
    tpot_target_ms: float
    levels: tuple[Level, ...]
    wanted_rate: float
    runs: tuple[Run, Run]


@dataclass(frozen=True, slots=True)
class Probes:
    """The probes of one server.

    Args:
        favouring: the split that favours prefill, and the one that favours decode.
        ttft_target_ms: the SLO, which is given.
        seconds: how long the first one takes.
    """

    server: Server
    prompts: Prompts
    favouring: tuple[str, str]
    ttft_target_ms: float
    seconds: float
    seed: int

    def of(self, prefill: Part, decode: Part) -> Probed:
        """Set the TPOT target and find the decode-heavy rate."""
        self.server.move(self.favouring[0])
        first = self._keep_busy(prefill, [0.0] * PREFILL_STREAMS, self.seconds)
        first_tokens = [
            (flight.first_s, flight.request.input_len)
            for flight in first.flights
            if flight.first_s is not None
        ]
        tokens_per_s = capacity(first_tokens, WARM_UP_S)
        target_ms = TPOT_ROOM * tpot_p90_ms(first.records, WARM_UP_S)
        wanted_ms = DECODE_LOAD * target_ms
        self.server.move(self.favouring[1])
        streams = [
            streams_for(share, tokens_per_s, decode, wanted_ms)
            for share in DECODE_PROBES
        ]
        level_s = LEVEL_PROBES * self.seconds
        second = self._keep_busy(
            decode, starts(streams, level_s), level_s * len(streams)
        )
        levels = levels_of(streams, second.records, level_s, decode)
        wanted = rate_for(levels, TTFT_LOAD * self.ttft_target_ms, wanted_ms)
        return Probed(tokens_per_s, target_ms, levels, wanted, (first, second))

    def _keep_busy(self, part: Part, begin: Sequence[float], seconds: float) -> Run:
        source = random.Random(self.seed)
        run = keep_busy(
            self.server,
            lambda: Request(0.0, *part.draw(source)),
            self.prompts.draw,
            starts=begin,
            seconds=seconds,
        )
        self.server.settle()
        return run
