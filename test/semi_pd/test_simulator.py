# SPDX-License-Identifier: Apache-2.0
"""The discrete-event model: exact on small cases, sane on large ones, fast."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sglang.semi_pd.control.control_pace import ControlPace
from sglang.semi_pd.control.split_offer import default_splits
from sglang.semi_pd.errors import ConfigError
from sglang.semi_pd.simulation import client_view
from sglang.semi_pd.simulation.simulation import simulate, simulate_controlled
from sglang.semi_pd.simulation.simulator import InstanceSimulator
from sglang.semi_pd.simulation.simulator_coefficients import (
    BUILTIN,
    SimulatorCoefficients,
)
from sglang.semi_pd.simulation.trace import Phase, Trace
from sglang.semi_pd.slo_types import ControlLimits, SLOConstraints
from sglang.semi_pd.sm_allocation import UNPARTITIONED, SMAllocation

SLO = SLOConstraints(ttft_target_ms=300.0, tpot_target_ms=20.0)

H200 = SimulatorCoefficients.builtin()

# Round figures: 10 ms per 100 prompt tokens, 10 ms per decode step, no interference.
ROUND = replace(
    SimulatorCoefficients.builtin(),
    prefill_step_s=0.0,
    prefill_s_per_token=1e-4,
    prefill_s_per_context_token=0.0,
    decode_step_s=0.01,
    decode_s_per_request=0.0,
    decode_s_per_kv_token=0.0,
    interference=((100, 100, 1, 1),),
    request_overhead_s=0.0,
)


def trace_of(*rows: tuple[float, int, int]) -> Trace:
    arrival_s, inputs, outputs = zip(*rows, strict=True)
    return Trace(np.array(arrival_s, float), np.array(inputs), np.array(outputs))


def run(trace: Trace, coefficients: SimulatorCoefficients = ROUND) -> InstanceSimulator:
    instance = InstanceSimulator(trace, coefficients, UNPARTITIONED)
    instance.advance()
    return instance


def test_one_request_takes_its_prefill_and_its_steps() -> None:
    instance = run(trace_of((1.0, 100, 11)))
    assert instance.first_token_s[0] == pytest.approx(1.01)
    assert instance.completion_s[0] == pytest.approx(1.11)
    assert client_view.worst_gap_s(instance)[0] == pytest.approx(0.01)


def test_one_token_needs_no_decode_step() -> None:
    instance = run(trace_of((0.0, 100, 1)))
    assert instance.completion_s[0] == instance.first_token_s[0]
    assert math.isnan(client_view.worst_gap_s(instance)[0])


def test_prompts_queue_first_come_first_served() -> None:
    coefficients = replace(ROUND, chunk_tokens=100)
    instance = run(trace_of((0.0, 100, 1), (0.0, 200, 1), (0.001, 50, 1)), coefficients)
    assert instance.first_token_s == pytest.approx([0.01, 0.03, 0.035])


def test_a_prefill_step_is_formed_when_the_one_before_it_begins() -> None:
    coefficients = replace(ROUND, chunk_tokens=100)
    instance = run(trace_of((0.0, 100, 1), (0.0, 50, 1), (0.002, 50, 1)), coefficients)
    assert instance.first_token_s == pytest.approx([0.01, 0.015, 0.02])


def test_a_short_prompt_shares_the_steps_of_a_long_one() -> None:
    """Two of 2048 tokens were formed before it came; it has its part of the third."""
    instance = run(trace_of((0.0, 16 * 2048, 1), (0.001, 100, 1)))
    assert instance.first_token_s == pytest.approx([1e-4 * (16 * 2048 + 100), 0.6144])


def test_a_server_that_fills_steps_as_sglang_lets_it_wait() -> None:
    coefficients = replace(ROUND, forward_rule="sglang")
    instance = run(trace_of((0.0, 16 * 2048, 1), (0.001, 100, 1)), coefficients)
    assert instance.first_token_s == pytest.approx([3.2768, 3.2868])


def test_the_fixed_part_of_a_prefill_step_is_the_hosts_and_no_split_slows_it() -> None:
    coefficients = replace(ROUND, prefill_step_s=0.004, prefill_speed=((100, 0.5),))
    instance = run(trace_of((0.0, 100, 1)), coefficients)
    assert instance.first_token_s[0] == pytest.approx(0.024)


def test_a_first_token_leaves_at_the_end_of_a_step_and_the_next_two_steps_later() -> (
    None
):
    instance = run(trace_of((0.0, 100, 101), (0.1, 50, 3)))
    assert instance.first_token_s[1] == pytest.approx(0.11)
    assert instance.completion_s[1] == pytest.approx(0.14)
    assert client_view.worst_gap_s(instance)[1] == pytest.approx(0.02)


def test_what_has_ended_is_in_one_more_step() -> None:
    coefficients = replace(ROUND, decode_step_s=0.0, decode_s_per_request=0.01)
    instance = run(trace_of((0.0, 100, 3), (0.0, 100, 5)), coefficients)
    # Both from 0.02 on, 20 ms a step: two steps, one for nothing, then one alone.
    assert instance.completion_s == pytest.approx([0.06, 0.09])


def test_tokens_of_running_streams_delay_a_first_token() -> None:
    coefficients = replace(ROUND, request_overhead_s=0.003, transport_s_per_stream=1e-3)
    instance = run(trace_of((0.0, 100, 101), (0.1, 50, 3)), coefficients)
    assert client_view.ttft_s(instance) == pytest.approx([0.013, 0.014])


def test_a_full_cache_holds_prompts_back() -> None:
    coefficients = replace(ROUND, kv_capacity_tokens=120)
    instance = run(trace_of((0.0, 100, 11), (0.0, 100, 11)), coefficients)
    assert instance.first_token_s[1] >= instance.completion_s[0]


def test_a_request_larger_than_the_cache_is_served_alone() -> None:
    coefficients = replace(ROUND, kv_capacity_tokens=50)
    assert np.isfinite(run(trace_of((0.0, 100, 11)), coefficients).completion_s).all()


def test_interference_slows_both_only_while_both_run() -> None:
    coefficients = replace(ROUND, interference=((100, 100, 3, 2),))
    instance = run(trace_of((0.0, 100, 101), (0.095, 100, 2)), coefficients)
    assert instance.first_token_s[0] == pytest.approx(0.01)
    assert instance.first_token_s[1] == pytest.approx(0.14)
    assert client_view.worst_gap_s(instance)[0] == pytest.approx(0.02)


def test_reading_kv_beside_prefill_has_a_factor_of_its_own() -> None:
    coefficients = replace(
        ROUND, decode_s_per_kv_token=1e-4, interference=((100, 100, 1, 2, 5),)
    )
    instance = run(trace_of((0.0, 100, 3), (0.012, 900, 1)), coefficients)
    first, second = np.diff([instance.first_token_s[0], *instance.step_ends_s[:2]])
    assert first == pytest.approx(0.01 + 101e-4)
    assert second == pytest.approx(2 * 0.01 + 5 * 102e-4)


def test_every_request_is_served_and_memory_comes_back() -> None:
    trace = Trace.poisson(20.0, requests=500, input_length=800, output_length=60)
    tight = replace(H200, kv_capacity_tokens=20_000, max_decode_batch=8)
    instance = InstanceSimulator(trace, tight, SMAllocation(70, 30))
    instance.advance()
    assert np.isfinite(instance.completion_s).all()
    assert (instance.first_token_s > trace.arrival_s).all()
    assert (instance.completion_s >= instance.first_token_s).all()
    assert instance.free_kv_tokens == tight.kv_capacity_tokens


def test_advancing_in_pieces_changes_nothing() -> None:
    trace = Trace.poisson(10.0, requests=200, input_length=800, output_length=60)
    whole = InstanceSimulator(trace, H200, SMAllocation(70, 30))
    whole.advance()
    pieces = InstanceSimulator(trace, H200, SMAllocation(70, 30))
    for until_s in np.arange(0.0, 60.0, 0.37):
        pieces.advance(float(until_s))
    assert pieces.completion_s == pytest.approx(whole.completion_s)


def test_the_measured_table_is_returned_where_it_was_measured() -> None:
    coefficients = H200
    for prefill, decode, prefill_factor, decode_factor in coefficients.interference:
        factors = coefficients.factors(SMAllocation(int(prefill), int(decode)))
        beside = (factors.prefill_beside_decode, factors.decode_beside_prefill)
        assert beside == pytest.approx((prefill_factor, decode_factor), rel=1e-3)
        assert factors.decode_kv_beside_prefill == factors.decode_beside_prefill


def test_a_larger_share_serves_its_own_phase_better() -> None:
    trace = Trace.poisson(14.0, requests=2000, input_length=1024, output_length=256)
    halves, more = (simulate(trace, SMAllocation(x, 100 - x), SLO) for x in (50, 80))
    assert more.ttft.p95_ms < halves.ttft.p95_ms
    assert more.tpot.p95_ms > halves.tpot.p95_ms


def test_more_gpus_serve_more() -> None:
    trace = Trace.poisson(40.0, requests=2000, input_length=1024, output_length=256)
    one, two = (simulate(trace, SMAllocation(70, 30), SLO, gpus=g) for g in (1, 2))
    assert two.slo_attainment > one.slo_attainment + 0.3


def test_the_controller_beats_the_split_it_starts_from() -> None:
    trace = Trace.poisson(16.0, requests=4000, input_length=1024, output_length=256)
    start = SMAllocation(20, 80)
    controlled = simulate_controlled(trace, start, SLO)
    assert controlled.report.slo_attainment > simulate(trace, start, SLO).slo_attainment
    assert controlled.report.slo_attainment > 0.7
    assert len(controlled.splits) > 1


def test_a_shifting_load_is_followed_better_than_any_split_serves_it() -> None:
    """Prefill-heavy and decode-heavy, a minute each; moves are cheap.

    One seed and eight splits; docs/performance.md has three seeds and eighteen.
    """
    phases = [Phase(6, 4000, 32), Phase(13, 1070, 600)]
    trace = Trace.alternating(phases, phase_s=60.0, repeats=2)
    targets = SLOConstraints(1500.0, 19.0, percentile=90)
    splits = [SMAllocation(x, 100) for x in (42, 55, 67, 79, 91, 100)]
    splits += [SMAllocation(79, 21), SMAllocation(55, 45)]
    attained = {
        split: simulate(trace, split, targets, coefficients=H200).slo_attainment
        for split in splits
    }
    pace = ControlPace.for_move(
        1e-4, interval_s=10.0, window_s=30.0, speeds_are_known=True
    )
    controlled = simulate_controlled(
        trace,
        SMAllocation(55, 45),
        targets,
        limits=ControlLimits(
            allow_overlap=True,
            max_percentage=100,
            offers=H200.offers(splits),
            cooldown_s=pace.cooldown_s,
            window_s=pace.window_s,
        ),
        coefficients=H200,
        interval_s=pace.interval_s,
    )
    reached = controlled.report.slo_attainment
    print(f"controller {reached:.3f}, best split {max(attained.values()):.3f}")
    assert reached >= max(attained.values()) + 0.10
    assert reached >= attained[UNPARTITIONED]


def test_so_it_is_where_each_sm_belongs_to_one_worker() -> None:
    """The controller is told other speeds than those it is served with."""
    told, served = (
        SimulatorCoefficients.load(BUILTIN.with_name(f"{BUILTIN.stem}_{name}.json"))
        for name in ("green", "green_served")
    )
    phases = [Phase(22, 600, 300), Phase(17, 1500, 16)]
    trace = Trace.alternating(phases, phase_s=30.0, repeats=2)
    targets = SLOConstraints(1200.0, 16.0)
    splits = default_splits(overlap_allowed=False)
    best = max(
        simulate(trace, split, targets, coefficients=served).slo_attainment
        for split in (*splits, UNPARTITIONED)
    )
    pace = ControlPace.for_move(
        1e-4, interval_s=10.0, window_s=30.0, speeds_are_known=True
    )
    controlled = simulate_controlled(
        trace,
        SMAllocation(70, 30),
        targets,
        limits=pace.limits(offers=told.offers(splits)),
        coefficients=served,
        interval_s=pace.interval_s,
    )
    assert controlled.report.slo_attainment >= best + 0.10


def test_100_000_requests_take_seconds() -> None:
    trace = Trace.poisson(16.0, requests=100_000, input_length=1024, output_length=256)
    started_s = time.perf_counter()
    simulate(trace, SMAllocation(70, 30), SLO)
    took_s = time.perf_counter() - started_s
    print(f"100,000 requests in {took_s:.2f} s")
    assert took_s < 20.0


def test_calibrations_are_read_and_refused(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({"decode_step_s": 0.5, "decode_speed": [[100, 1]]}))
    coefficients = SimulatorCoefficients.load(path)
    assert coefficients.decode_step_s == 0.5
    assert coefficients.decode_speed == ((100, 1),)
    path.write_text('{"decode_steps": 1}')
    with pytest.raises(ConfigError, match=r"unknown names \['decode_steps'\]"):
        SimulatorCoefficients.load(path)
    path.write_text('{"forward_rule": "round"}')
    with pytest.raises(ConfigError, match=r"not one of \['prefill', 'sglang'\]"):
        SimulatorCoefficients.load(path)


def test_traces_are_read_and_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    rows = [
        {"arrival_s": 2.0, "input_length": 10, "output_length": 5},
        {"arrival_s": 1.0, "input_length": 20, "output_length": 6},
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    trace = Trace.load(path)
    assert trace.arrival_s.tolist() == [1.0, 2.0]
    assert trace.input_length.tolist() == [20, 10]
    path.write_text('{"arrival_s": 1.0, "input_length": 0, "output_length": 5}')
    with pytest.raises(ConfigError, match="line 1"):
        Trace.load(path)
    path.write_text("\n")
    with pytest.raises(ConfigError, match="no requests"):
        Trace.load(path)
