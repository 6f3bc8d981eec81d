# SPDX-License-Identifier: Apache-2.0
"""The fleet model: agrees with the step-by-step one, conserves, routes, is quick."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import numpy as np
import pytest
from sglang.semi_pd.errors import ConfigError
from sglang.semi_pd.simulation.fleet import FleetSimulator
from sglang.semi_pd.simulation.fleet_report import FleetReport, simulate_fleet
from sglang.semi_pd.simulation.fleet_types import (
    Deployment,
    FleetTrace,
    Routing,
    Scheme,
)
from sglang.semi_pd.simulation.simulator import InstanceSimulator
from sglang.semi_pd.simulation.simulator_coefficients import SimulatorCoefficients
from sglang.semi_pd.simulation.trace import Trace
from sglang.semi_pd.slo_types import SLOConstraints
from sglang.semi_pd.sm_allocation import SMAllocation

IS_SOAK = os.environ.get("SEMI_PD_SOAK") == "1"
H200 = SimulatorCoefficients.builtin()
SLO = SLOConstraints(ttft_target_ms=300.0, tpot_target_ms=20.0)
SPLIT = SMAllocation(90, 100)


def trace_of(rate: float, requests: int, *, seed: int = 0) -> FleetTrace:
    return FleetTrace.without_sessions(
        Trace.poisson(
            rate, requests=requests, input_length=1024, output_length=256, seed=seed
        )
    )


def semi_pd(
    gpus: int,
    *,
    split: SMAllocation = SPLIT,
    routing: Routing = Routing.LEAST_LOADED,
) -> Deployment:
    return Deployment(Scheme.SEMI_PD, gpus, split=split, routing=routing)


@pytest.mark.parametrize("rate", [4.0, 12.0, 16.0])
@pytest.mark.parametrize("split", [SMAllocation(50, 50), SPLIT])
def test_one_gpu_is_as_the_step_by_step_model_has_it(
    rate: float, split: SMAllocation
) -> None:
    trace = trace_of(rate, 1500)
    fleet = FleetSimulator(trace, semi_pd(1, split=split), H200)
    fleet.run()
    steps = InstanceSimulator(trace.requests, H200, split)
    steps.advance()
    ttft_s, tpot_s = fleet.latencies_s()
    slow_ttft_s = steps.first_token_s - trace.requests.arrival_s
    outputs = np.maximum(1, trace.requests.output_length - 1)
    slow_tpot_s = (steps.completion_s - steps.first_token_s) / outputs
    for percentile in (50, 90):
        quick = np.percentile(ttft_s, percentile)
        slow = np.percentile(slow_ttft_s, percentile) + H200.request_overhead_s
        assert quick == pytest.approx(slow, rel=0.05)
        quick = np.nanpercentile(tpot_s, percentile)
        assert quick == pytest.approx(np.percentile(slow_tpot_s, percentile), rel=0.12)


@pytest.mark.parametrize(
    "deployment",
    [
        semi_pd(4),
        Deployment(Scheme.PLAIN, 4, routing=Routing.ROUND_ROBIN),
        Deployment(Scheme.DISAGGREGATED, 4, prefill_gpus=2),
    ],
)
def test_every_request_is_served_and_memory_comes_back(deployment: Deployment) -> None:
    trace = trace_of(60.0, 1500)
    tight = replace(H200, kv_capacity_tokens=20_000, max_decode_batch=8)
    fleet = FleetSimulator(trace, deployment, tight)
    fleet.run()
    first, end = np.array(fleet.first_token_s), np.array(fleet.completion_s)
    assert (first > trace.requests.arrival_s).all()
    assert (end >= first).all()
    for gpu in fleet._gpus:
        assert (gpu.running, gpu.free_kv) == (0, tight.kv_capacity_tokens)
        assert gpu.kv_tokens == pytest.approx(0, abs=1e-3)


def report(deployment: Deployment, trace: FleetTrace) -> FleetReport:
    return simulate_fleet(trace, deployment, SLO, H200)


def test_kv_that_travels_delays_the_first_token() -> None:
    trace = trace_of(10.0, 500)
    near = Deployment(Scheme.DISAGGREGATED, 2, prefill_gpus=1)
    far = replace(near, transfer_bytes_per_s=1e9)
    took_ms = 1e3 * (far.transfer_s(1024) - near.transfer_s(1024))
    gained = report(far, trace).ttft.p50_ms - report(near, trace).ttft.p50_ms
    assert gained == pytest.approx(took_ms, rel=0.25)


def test_decode_apart_has_the_shortest_tpot_and_plain_the_first_token() -> None:
    trace = trace_of(28.0, 3000)
    apart = report(Deployment(Scheme.DISAGGREGATED, 2, prefill_gpus=1), trace)
    plain = report(Deployment(Scheme.PLAIN, 2), trace)
    beside = report(semi_pd(2), trace)
    assert apart.tpot.p90_ms < min(plain.tpot.p90_ms, beside.tpot.p90_ms)
    assert plain.ttft.p50_ms < beside.ttft.p50_ms


def test_load_is_seen_and_caches_are_found() -> None:
    drawn = Trace.poisson(60.0, requests=3000, input_length=512, output_length=128)
    trace = FleetTrace.with_turns(drawn, 5)
    in_turn, by_load, by_cache = (
        report(semi_pd(8, routing=routing), trace) for routing in Routing
    )
    assert by_load.tpot.p99_ms < in_turn.tpot.p99_ms
    assert by_cache.cached_share > 2 * by_load.cached_share
    assert by_cache.ttft.p90_ms < by_load.ttft.p90_ms


def test_the_same_question_has_the_same_answer() -> None:
    assert report(semi_pd(3), trace_of(20.0, 500)) == report(
        semi_pd(3), trace_of(20.0, 500)
    )


def test_a_fleet_has_a_size() -> None:
    with pytest.raises(ConfigError, match="10001 GPUs"):
        semi_pd(10_001)
    with pytest.raises(ConfigError, match="4 prefill GPUs of 4"):
        Deployment(Scheme.DISAGGREGATED, 4, prefill_gpus=4)


def test_a_million_requests_take_less_than_a_minute() -> None:
    """With SEMI_PD_SOAK=1; else a hundredth of it on as many GPUs."""
    requests = 1_000_000 if IS_SOAK else 10_000
    trace = trace_of(10_000.0, requests)
    started_s = time.process_time()
    FleetSimulator(trace, semi_pd(1000), H200).run()
    took_s = time.process_time() - started_s
    print(f"{requests} requests over 1000 GPUs: {took_s:.2f} s of one core")
    assert took_s < (60.0 if IS_SOAK else 3.0)
