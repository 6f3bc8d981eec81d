# SPDX-License-Identifier: Apache-2.0
"""How heavy the shifting load is made: on a simulated server each part can be held."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sglang.semi_pd.simulation import client_view
from sglang.semi_pd.simulation.simulator import InstanceSimulator
from sglang.semi_pd.simulation.simulator_coefficients import (
    BUILTIN,
    SimulatorCoefficients,
)
from sglang.semi_pd.simulation.trace import Trace
from sglang.semi_pd.sm_allocation import SMAllocation

H200 = SimulatorCoefficients.load(BUILTIN.with_name("h200_llama3_8b_green_served.json"))
FAVOURING = ("90/100", "50/50")
TTFT_MS = 1200.0
MOST = 4000


@pytest.fixture(autouse=True)
def _benchmark_on_path(repository: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(repository / "benchmark" / "semi_pd"))


@pytest.fixture
def probe() -> ModuleType:
    return importlib.import_module("shifting_probe")


class SimulatedServer:
    """Serves streams in no time: takes the place of a server and of ``keep_busy``."""

    def __init__(self) -> None:
        self.split = SMAllocation.parse(FAVOURING[0])

    def move(self, split: str) -> None:
        self.split = SMAllocation.parse(split)

    def settle(self) -> None:
        pass

    def keep_busy(
        self,
        _server: Any,
        draw: Callable[[], Any],
        _prompts: Any,
        *,
        starts: Sequence[float],
        seconds: float,
    ) -> Any:
        """A stream asks again as soon as it is answered."""
        trace = Trace(np.full(MOST, np.inf), np.ones(MOST, int), np.ones(MOST, int))
        instance = InstanceSimulator(trace, H200, self.split)
        asked, seen, now = sorted(starts), 0, 0.0
        requests: list[Any] = []
        while now < seconds:
            ended = len(instance.completion_order) - seen
            seen += ended
            due = [at for at in asked if at <= now]
            asked = asked[len(due) :]
            for _ in range(ended + len(due)):
                number, request = len(requests), draw()
                requests.append(request)
                instance._arrival_s[number] = trace.arrival_s[number] = now
                instance._input[number] = request.input_len
                trace.output_length[number] = request.output_len
                instance._output[number] = request.output_len
            now += 0.01
            instance.advance(now)
        return seen_by_clients(instance, requests)


def seen_by_clients(instance: InstanceSimulator, requests: Sequence[Any]) -> Any:
    flight = importlib.import_module("shifting_client").Flight
    flights = []
    first_s = instance.trace.arrival_s + client_view.ttft_s(instance)
    for number, request in enumerate(requests):
        sent_s = float(instance.trace.arrival_s[number])
        one = flight(request, sent_s)
        if np.isfinite(first_s[number]):
            one.event(float(first_s[number]))
        if np.isfinite(instance.completion_s[number]):
            late_s = first_s[number] - instance.first_token_s[number]
            one.event(float(instance.completion_s[number] + late_s))
            one.is_done = True
        flights.append(one)
    return importlib.import_module("shifting_client").Run(flights)


@pytest.fixture
def probed(probe: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    server = SimulatedServer()
    monkeypatch.setattr(probe, "keep_busy", server.keep_busy)
    load = importlib.import_module("shifting_load")
    prompts = SimpleNamespace(draw=lambda length: [7] * length)
    probes = probe.Probes(
        server, prompts, FAVOURING, ttft_target_ms=TTFT_MS, seconds=9.0, seed=0
    )
    yield probes.of(load.PREFILL_HEAVY, load.DECODE_HEAVY)


def held(requests: Sequence[Any], tpot_ms: float, turns_s: Sequence[float]) -> Any:
    """Which requests are inside both SLOs, if the split turns as the load does."""
    columns = zip(
        *((r.arrival_s, r.input_len, r.output_len) for r in requests), strict=True
    )
    trace = Trace(*(np.array(column) for column in columns))
    instance = InstanceSimulator(trace, H200, SMAllocation.parse(FAVOURING[1]))
    for number, turn_s in enumerate(turns_s):
        instance.advance(turn_s)
        instance.set_allocation(SMAllocation.parse(FAVOURING[number % 2]))
    instance.advance()
    is_held = 1e3 * client_view.ttft_s(instance) <= TTFT_MS
    return is_held & (1e3 * client_view.tpot_s(instance) <= tpot_ms)


def test_the_split_for_either_part_can_carry_it(probe: ModuleType, probed: Any) -> None:
    """For a minute each: no queue and no batch that goes on growing."""
    load = importlib.import_module("shifting_load")
    rates = [
        probe.PREFILL_LOAD * probed.tokens_per_s / load.PREFILL_HEAVY.input_len,
        probe.within(probed.wanted_rate, probed.tokens_per_s, load.DECODE_HEAVY),
    ]
    prefill = load.Stretch(load.PREFILL_HEAVY, rates[0], 60.0)
    decode = load.Stretch(load.DECODE_HEAVY, rates[1], 60.0)
    inside: dict[int, list[bool]] = {0: [], 1: [], 2: []}
    for seed in range(3):
        requests = load.arrivals([decode, prefill, decode], seed)
        is_held = held(requests, probed.tpot_target_ms, turns_s=(61.0, 121.0))
        for request, one in zip(requests, is_held, strict=True):
            inside[int(request.arrival_s / 60)].append(bool(one))
    shares = [float(np.mean(part)) for part in inside.values()]
    assert min(shares[0], shares[2]) >= 0.97
    assert shares[1] >= 0.88, "more than the queue costs that forms at the turn"
    heavier = load.Stretch(load.DECODE_HEAVY, 1.3 * rates[1], 60.0)
    requests = load.arrivals([heavier], seed=0)
    assert held(requests, probed.tpot_target_ms, turns_s=()).mean() < 0.9


def test_no_longer_than_the_probes_it_replaced(probe: ModuleType) -> None:
    assert 1 + len(probe.DECODE_PROBES) * probe.LEVEL_PROBES <= 4.0


def test_capacity_counts_what_came_after_the_warm_up(probe: ModuleType) -> None:
    served = [(0.5, 10_000), (2.5, 700), (3.0, 100), (3.5, 300)]
    assert probe.capacity(served, 2.0) == pytest.approx(400.0)
    with pytest.raises(ValueError, match="too short"):
        probe.capacity(served[:2], 2.0)


def test_which_part_of_a_chunk_lies_at_the_ends_does_not_matter(
    probe: ModuleType,
) -> None:
    """Five prompts of 1600 tokens at a time, each quarter of a second: 32,000/s."""
    served = [(0.25 * chunk, 1600) for chunk in range(37) for _ in range(5)]
    for warm_up_s in (2.0, 2.1, 2.3):
        assert probe.capacity(served, warm_up_s) == pytest.approx(32_000, rel=0.01)
    apart = [
        (when + 0.001 * (n % 5), length) for n, (when, length) in enumerate(served)
    ]
    assert probe.capacity(apart, 2.002) == pytest.approx(32_000, rel=0.01)


def test_streams_begin_one_after_the_other(probe: ModuleType) -> None:
    found = probe.starts([3, 5], level_s=9.0)
    assert found == pytest.approx([0.0, 1.0, 2.0, 9.0, 10.5])
    assert probe.starts([3, 2], level_s=9.0) == found[:3]


def test_a_level_is_what_began_and_ended_in_it(probe: ModuleType) -> None:
    record = importlib.import_module("records").Record
    early, first, late, second = (
        record(at_s, 100, 101, 100.0, 10.0, 5.0) for at_s in (2.9, 3.0, 7.95, 12.0)
    )
    failed = record(4.0, 100, 101, 100.0, 10.0, 5.0, success=False)
    records = [early, first, failed, late, second]
    assert probe.at_level(records, 0, 9.0) == [first, failed]
    assert probe.at_level(records, 1, 9.0) == [second]
    level = probe.Level.of(4, [first, failed], 201)
    assert level == probe.Level(4, pytest.approx(2.1), 100.0, 10.0)
    with pytest.raises(ValueError, match="4 streams"):
        probe.Level.of(4, [failed], 201)


def test_the_rate_follows_from_two_levels(probe: ModuleType) -> None:
    """Little's law: 60 streams at 6 s each are 10 requests a second."""
    levels = [probe.Level(40, 4.4, 200.0, 10.0), probe.Level(80, 7.6, 400.0, 20.0)]
    assert probe.rate_for(levels, 600.0, 15.0) == pytest.approx(10.0)
    assert probe.rate_for(levels, 600.0, 10.0) == pytest.approx(40 / 4.4)
    assert probe.rate_for(levels, 300.0, 19.0) == pytest.approx(10.0)
    flat = probe.Level(80, 7.6, 200.0, 9.9)
    assert probe.rate_for([levels[0], flat], 600.0, 15.0) == math.inf
    assert probe.rate_for(levels, 600.0, -5.0) == 0.0


def test_bounds_of_the_decode_heavy_rate(probe: ModuleType) -> None:
    part = importlib.import_module("shifting_load").Part(800, 400)
    assert probe.within(math.inf, 20_000, part) == pytest.approx(18.75)
    assert probe.within(-1.0, 20_000, part) == pytest.approx(7.5)
    assert probe.streams_for(0.4, 20_000, part, 12.5) == 50
    assert probe.streams_for(0.4, 2, part, 12.5) == 2
