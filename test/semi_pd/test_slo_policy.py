# SPDX-License-Identifier: Apache-2.0
"""decide(): Algorithm 1, its guards, and how it behaves on a plant over time."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang.semi_pd.control.latency_model import LatencyModel
from sglang.semi_pd.control.slo_policy import decide
from sglang.semi_pd.slo_types import (
    ControlLimits,
    ControlMode,
    ControlState,
    Decision,
    MetricsSnapshot,
    Reason,
    SLOConstraints,
)
from sglang.semi_pd.sm_allocation import UNPARTITIONED, SMAllocation
from sglang.semi_pd.utils import InstanceRole
from slo_plant import Plant, snapshot_of

SLO = SLOConstraints(ttft_target_ms=100.0, tpot_target_ms=50.0)
HALVES = SMAllocation(50, 50)
TRUSTED = LatencyModel(ttft_error=0.05, tpot_error=0.05, splits_seen=5)


def decision_on(
    snapshot: MetricsSnapshot,
    current: SMAllocation = HALVES,
    *,
    model: LatencyModel | None = None,
    limits: ControlLimits | None = None,
    state: ControlState | None = None,
) -> Decision:
    return decide(
        snapshot,
        current,
        constraints=SLO,
        model=model or LatencyModel(),
        limits=limits or ControlLimits(),
        state=state or ControlState(),
    )


def contains(limits: ControlLimits, split: SMAllocation) -> bool:
    """Whether a split respects the bounds and the overlap rule."""
    shares = split.as_dict().values()
    is_inside = all(limits.min_percentage <= s <= limits.max_percentage for s in shares)
    return is_inside and (limits.allow_overlap or not split.is_overlapping)


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
@pytest.mark.parametrize("name", ["ttft_target_ms", "tpot_target_ms"])
def test_targets_are_positive(name: str, value: float) -> None:
    targets = {"ttft_target_ms": 100.0, "tpot_target_ms": 50.0, name: value}
    with pytest.raises(ValueError, match=name):
        SLOConstraints(targets["ttft_target_ms"], targets["tpot_target_ms"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_percentage": 0},
        {"min_percentage": 9},
        {"max_percentage": 95},
        {"max_percentage": 101, "allow_overlap": True},
        {"step_size": 0},
        {"headroom": 1.0},
        {"decisive_excess": 0.5},
        {"cooldown_s": -1.0},
    ],
)
def test_limits_name_what_is_wrong(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ControlLimits(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="percentile"):
        SLOConstraints(100.0, 50.0, percentile=42)


def test_nothing_moves_while_both_slos_are_met() -> None:
    decision = decision_on(snapshot_of(90.0, 40.0))
    assert decision.reason is Reason.SLO_MET
    assert decision.allocation == HALVES


def test_ttft_alone_gives_prefill_more() -> None:
    decision = decision_on(snapshot_of(200.0, 40.0))
    assert decision.reason is Reason.TTFT_FAILS
    assert decision.allocation.prefill_percentage > 50
    assert sum(decision.allocation.as_dict().values()) == 100


def test_tpot_alone_gives_decode_more() -> None:
    decision = decision_on(snapshot_of(50.0, 90.0))
    assert decision.reason is Reason.TPOT_FAILS
    assert decision.allocation.decode_percentage > 50


def test_both_failing_keeps_the_split_as_the_papers_text_says() -> None:
    decision = decision_on(snapshot_of(200.0, 90.0))
    assert decision.reason is Reason.BOTH_FAIL
    assert decision.allocation == HALVES


def test_both_failing_hands_out_what_nobody_uses() -> None:
    decision = decision_on(snapshot_of(200.0, 90.0), SMAllocation(20, 20))
    assert decision.reason is Reason.UNUSED_SHARE
    assert decision.allocation == HALVES


def test_few_samples_prove_nothing() -> None:
    decision = decision_on(snapshot_of(900.0, 40.0, count=3))
    assert decision.reason is Reason.TOO_FEW_SAMPLES


def test_a_small_excess_must_last() -> None:
    snapshot = snapshot_of(110.0, 40.0)
    first = decision_on(snapshot)
    assert first.reason is Reason.AWAITING_CONFIRMATION
    second = decision_on(snapshot, state=first.state)
    assert second.reason is Reason.TTFT_FAILS


def test_turning_round_needs_more_proof() -> None:
    snapshot = snapshot_of(110.0, 40.0)
    state = ControlState(favoured=InstanceRole.DECODE)
    reasons = []
    for _ in range(3):
        decision = decision_on(snapshot, state=state)
        state = decision.state
        reasons.append(decision.reason)
    awaiting = Reason.AWAITING_CONFIRMATION
    assert reasons == [awaiting, awaiting, Reason.TTFT_FAILS]


def test_a_change_is_followed_by_a_pause() -> None:
    limits = ControlLimits(cooldown_s=15.0)
    first = decision_on(snapshot_of(300.0, 40.0, at_s=100.0), limits=limits)
    soon = decision_on(
        snapshot_of(300.0, 40.0, at_s=110.0),
        first.allocation,
        limits=limits,
        state=first.state,
    )
    assert soon.reason is Reason.COOLING_DOWN
    later = decision_on(
        snapshot_of(300.0, 40.0, at_s=116.0),
        first.allocation,
        limits=limits,
        state=first.state,
    )
    assert later.reason is Reason.TTFT_FAILS


def test_one_decision_goes_no_further_than_its_step_limit() -> None:
    limits = ControlLimits(step_size=5, max_step=2)
    decision = decision_on(snapshot_of(5000.0, 40.0), limits=limits)
    assert decision.allocation == SMAllocation(60, 40)


def test_bounds_stop_it() -> None:
    decision = decision_on(snapshot_of(5000.0, 10.0), SMAllocation(90, 10))
    assert decision.reason is Reason.AT_BOUND
    assert decision.allocation == SMAllocation(90, 10)


def test_it_does_not_save_one_slo_by_breaking_the_other() -> None:
    model = replace(TRUSTED, tpot_scale_ms=24.0, tpot_floor_ms=0.0)
    decision = decision_on(
        snapshot_of(300.0, 44.0), model=model, limits=ControlLimits(step_size=10)
    )
    assert decision.reason is Reason.OTHER_SLO_WOULD_FAIL
    assert decision.allocation == HALVES


def test_a_backlog_counts_before_its_latencies_do() -> None:
    snapshot = replace(snapshot_of(50.0, 10.0), prefill_queue_length=40)
    assert decision_on(snapshot).reason is Reason.SLO_MET
    decision = decision_on(snapshot, model=TRUSTED)
    assert decision.failing == (InstanceRole.PREFILL,)
    assert decision.reason is Reason.AWAITING_CONFIRMATION


def test_an_overloaded_queue_has_no_estimate_but_still_a_decision() -> None:
    busy = replace(snapshot_of(20_000.0, 10.0), arrival_rate=1000.0)
    decision = decision_on(busy)
    assert decision.reason is Reason.TTFT_FAILS
    assert decision.ttft_estimate_ms == math.inf


def test_with_overlap_caps_are_raised_before_the_other_worker_pays() -> None:
    limits = ControlLimits(allow_overlap=True, max_percentage=100, max_step=1)
    raised = decision_on(snapshot_of(300.0, 10.0), SMAllocation(60, 100), limits=limits)
    assert raised.allocation == SMAllocation(65, 100)
    paid = decision_on(snapshot_of(50.0, 90.0), SMAllocation(80, 100), limits=limits)
    assert paid.allocation == SMAllocation(75, 100)


def test_auto_gives_up_splitting_where_nothing_helps() -> None:
    limits = ControlLimits(mode=ControlMode.AUTO, patience_windows=3)
    state, decision = ControlState(), None
    for _ in range(3):
        decision = decision_on(snapshot_of(400.0, 90.0), limits=limits, state=state)
        state = decision.state
    assert decision is not None
    assert decision.reason is Reason.SPLIT_DOES_NOT_PAY
    assert decision.allocation == UNPARTITIONED
    assert "no split keeps both SLOs" in decision.advice


def test_auto_stays_unpartitioned_and_says_what_would_serve_better() -> None:
    limits = ControlLimits(mode=ControlMode.AUTO)
    hopeless = replace(TRUSTED, ttft_scale_ms=500.0)
    state = ControlState(last_change_s=0.0, last_split=HALVES)
    decision = decision_on(
        snapshot_of(400.0, 90.0, at_s=300.0),
        UNPARTITIONED,
        model=hopeless,
        limits=limits,
        state=state,
    )
    assert decision.reason is Reason.STAYS_UNPARTITIONED
    assert decision.allocation == UNPARTITIONED
    assert "plain scheduling" in decision.advice


def test_auto_leaves_an_idle_gpu_undivided_and_divides_it_again() -> None:
    limits = ControlLimits(mode=ControlMode.AUTO)
    idle = replace(snapshot_of(50.0, 10.0), arrival_rate=0.5)
    light = decision_on(idle, limits=limits)
    assert (light.reason, light.allocation) == (Reason.LIGHT_LOAD, UNPARTITIONED)
    busy = snapshot_of(90.0, 90.0, at_s=300.0)
    again = decision_on(busy, UNPARTITIONED, limits=limits, state=light.state)
    assert again.reason is Reason.SPLIT_PAYS_AGAIN
    assert contains(limits, again.allocation)


@pytest.mark.parametrize("start", range(10, 91, 10))
@pytest.mark.parametrize("seed", range(2))
def test_any_start_reaches_a_feasible_split_and_stays(start: int, seed: int) -> None:
    constraints = SLOConstraints(ttft_target_ms=230.0, tpot_target_ms=26.0)
    plant = Plant(constraints, SMAllocation(start, 100 - start), seed=seed)
    plant.run(100)
    reached = plant.windows_until_feasible()
    assert reached <= 5
    assert plant.reversals(since=reached) <= 1


@pytest.mark.parametrize("start", [10, 30, 50, 70, 90])
@pytest.mark.parametrize("mode", list(ControlMode))
def test_slos_that_no_split_meets_do_not_make_it_swing(
    start: int, mode: ControlMode
) -> None:
    constraints = SLOConstraints(ttft_target_ms=110.0, tpot_target_ms=15.0)
    limits = ControlLimits(mode=mode)
    plant = Plant(constraints, SMAllocation(start, 100 - start), limits)
    plant.run(100)
    assert plant.reversals() <= 3
    assert len(set(plant.splits[20:])) <= 2


@pytest.mark.parametrize("start", [(10, 100), (100, 10), (100, 100), (50, 50)])
def test_it_converges_with_overlap_too(start: tuple[int, int]) -> None:
    constraints = SLOConstraints(ttft_target_ms=230.0, tpot_target_ms=26.0)
    limits = ControlLimits(allow_overlap=True, max_percentage=100)
    plant = Plant(constraints, SMAllocation(*start), limits)
    plant.run(100)
    reached = plant.windows_until_feasible()
    assert reached <= 5
    assert plant.reversals(since=reached) <= 1


figures = st.one_of(st.floats(0, 1e7), st.sampled_from([math.nan, math.inf]))
shares = st.integers(1, 100)
modes = st.sampled_from(list(ControlMode))
roles = st.sampled_from([None, InstanceRole.PREFILL, InstanceRole.DECODE])


@st.composite
def control_limits(draw: st.DrawFn) -> ControlLimits:
    allow_overlap = draw(st.booleans())
    low = draw(st.integers(10, 40))
    high = draw(st.integers(50, 100 if allow_overlap else 100 - low))
    return ControlLimits(
        mode=draw(modes),
        allow_overlap=allow_overlap,
        min_percentage=low,
        max_percentage=high,
        step_size=draw(st.integers(1, 30)),
        max_step=draw(st.integers(1, 10)),
        cooldown_s=0.0,
        unpartitioned_dwell_s=0.0,
    )


@settings(max_examples=150, deadline=None)
@given(
    ttft_ms=figures,
    tpot_ms=figures,
    rate=st.floats(0, 1e4),
    current=st.builds(SMAllocation, shares, shares),
    limits=control_limits(),
    model=st.sampled_from([LatencyModel(), TRUSTED]),
    state=st.builds(
        ControlState,
        last_change_s=st.one_of(st.none(), st.just(0.0)),
        favoured=roles,
        failing=roles,
        failing_windows=st.integers(0, 5),
        hopeless_windows=st.integers(0, 5),
        last_split=st.one_of(st.none(), st.just(HALVES)),
    ),
)
def test_no_decision_leaves_the_bounds(  # noqa: PLR0913 - one per drawn input
    ttft_ms: float,
    tpot_ms: float,
    rate: float,
    current: SMAllocation,
    limits: ControlLimits,
    model: LatencyModel,
    state: ControlState,
) -> None:
    snapshot = replace(snapshot_of(ttft_ms, tpot_ms, at_s=99.0), arrival_rate=rate)
    decision = decision_on(snapshot, current, model=model, limits=limits, state=state)
    gave_up = limits.mode is ControlMode.AUTO and decision.allocation == UNPARTITIONED
    is_kept = decision.allocation == current
    assert is_kept or gave_up or contains(limits, decision.allocation)


@settings(deadline=None)
@given(
    current=st.builds(SMAllocation, shares, shares),
    limits=control_limits(),
    state=st.builds(ControlState, failing_windows=st.integers(0, 5)),
    broken=st.sampled_from(
        [
            MetricsSnapshot(taken_at_s=9.0, window_s=30.0),
            snapshot_of(math.nan, 10.0),
            snapshot_of(10.0, math.nan),
            snapshot_of(10.0, math.inf),
            replace(snapshot_of(500.0, 10.0), arrival_rate=math.nan),
            replace(snapshot_of(500.0, 10.0), taken_at_s=math.nan),
        ]
    ),
)
def test_nan_and_empty_windows_change_nothing(
    current: SMAllocation,
    limits: ControlLimits,
    state: ControlState,
    broken: MetricsSnapshot,
) -> None:
    decision = decision_on(broken, current, limits=limits, state=state)
    assert decision.allocation == current
    assert decision.state == state
