# SPDX-License-Identifier: Apache-2.0
"""Splits with measured speeds: what is predicted, what is chosen, and when."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang.semi_pd.control.control_pace import ControlPace
from sglang.semi_pd.control.decision_inputs import DecisionInputs
from sglang.semi_pd.control.decision_log import DecisionRecord, decode_line, encode_line
from sglang.semi_pd.control.latency_model import LatencyModel
from sglang.semi_pd.control.slo_policy import decide_from
from sglang.semi_pd.control.split_offer import SplitOffer, WorkerSpeeds, default_splits
from sglang.semi_pd.control.split_outlook import outlooks
from sglang.semi_pd.control.split_search import increased, within_bounds
from sglang.semi_pd.slo_types import (
    ControlLimits,
    ControlMode,
    ControlState,
    LatencySummary,
    MetricsSnapshot,
    Reason,
    SLOConstraints,
)
from sglang.semi_pd.sm_allocation import UNPARTITIONED, SMAllocation
from sglang.semi_pd.utils import InstanceRole
from slo_plant import summary

FAST_PREFILL, FAST_DECODE = SMAllocation(90, 100), SMAllocation(50, 100)
OFFERS = (
    SplitOffer(FAST_DECODE, WorkerSpeeds(0.4, 0.6, 0.7, 1.0)),
    SplitOffer(FAST_PREFILL, WorkerSpeeds(0.8, 0.9, 0.3, 1.0)),
    SplitOffer(UNPARTITIONED, WorkerSpeeds(0.9, 1.0, 0.16, 1.0)),
)
LIMITS = ControlLimits(
    allow_overlap=True, max_percentage=100, offers=OFFERS, cooldown_s=2.0
)


def seen(**changes: float) -> MetricsSnapshot:
    """5 prompts of 1000 tokens per second at 50 us a token; decode at 20 ms."""
    tpot_ms = changes.pop("tpot_ms", 20.0)
    snapshot = MetricsSnapshot(
        taken_at_s=100.0,
        window_s=5.0,
        arrival_rate=5.0,
        mean_input_length=1000.0,
        prefill_duty=0.25,
        prefill_s_per_token=5e-5,
        running_tpot=summary(tpot_ms),
    )
    return replace(snapshot, **changes)  # type: ignore[arg-type]


def inputs(
    snapshot: MetricsSnapshot,
    current: SMAllocation,
    *,
    limits: ControlLimits = LIMITS,
    state: ControlState | None = None,
) -> DecisionInputs:
    constraints = SLOConstraints(500.0, 25.0, percentile=90)
    return DecisionInputs(
        snapshot, current, constraints, LatencyModel(), limits, state or ControlState()
    )


def test_the_split_in_force_keeps_its_observed_pace() -> None:
    """Duty 0.25 is 5 prompts/s x 1000 tokens x 50 us: the ratio to itself is 1."""
    present, *_ = outlooks(inputs(seen(), FAST_PREFILL))
    assert present.allocation == FAST_PREFILL
    assert present.tpot_ms == pytest.approx(20.0)


def test_speeds_give_the_ratios() -> None:
    """At half the prefill speed the duty doubles; decode is slowed by 1/0.7 in it."""
    _, other, _ = outlooks(inputs(seen(), FAST_PREFILL))
    assert other.allocation == FAST_DECODE
    there, here = 0.5 / 0.7 + 0.5, 0.25 / 0.3 + 0.75
    assert other.tpot_ms == pytest.approx(20.0 * there / here)


def test_a_few_short_answers_are_judged_by_those_that_have_ended() -> None:
    """Three that run happened to meet a chunk; eighty that ended were in time."""
    caught = replace(summary(40.0), count=3)
    ended = replace(summary(20.0), count=80)
    few = inputs(seen(running_tpot=caught, tpot=ended), FAST_PREFILL)
    assert outlooks(few)[0].tpot_ms == pytest.approx(20.0)
    assert decide_from(few).reason is Reason.SLO_MET
    many = inputs(seen(running_tpot=summary(40.0), tpot=ended), FAST_PREFILL)
    assert outlooks(many)[0].tpot_ms == pytest.approx(40.0)
    none_ended = inputs(seen(running_tpot=caught), FAST_PREFILL)
    assert outlooks(none_ended)[0].tpot_ms == pytest.approx(40.0)


def test_a_request_that_has_just_begun_does_not_stand_for_the_others() -> None:
    """Served on an H200: 114 ran, 15.7 ms in the middle, 36.1 at P95; P95 was 15.2."""
    looked = LatencySummary(114, 15.7, 16.7, 36.1, 37.0)
    recorded = inputs(replace(seen(), running_tpot=looked), FAST_PREFILL)
    recorded = replace(recorded, constraints=SLOConstraints(1200.0, 17.5))
    present, *_ = outlooks(recorded)
    assert present.tpot_ms == pytest.approx(15.7 * math.exp(1.645 * 0.05), rel=1e-3)
    assert decide_from(recorded).reason is Reason.SLO_MET
    even = replace(recorded.snapshot, running_tpot=summary(15.7))
    assert outlooks(replace(recorded, snapshot=even))[0].tpot_ms == pytest.approx(15.7)


def test_a_backlog_is_waited_for_at_the_speed_of_the_split() -> None:
    """10,000 tokens ahead at 100 us and 10,000 per second: none left after 4 s."""
    here = inputs(seen(waiting_prompt_tokens=11_000), FAST_DECODE)
    empty = inputs(seen(waiting_prompt_tokens=1_000), FAST_DECODE)
    waited_ms = outlooks(here)[0].ttft_ms - outlooks(empty)[0].ttft_ms
    assert waited_ms == pytest.approx(1e3 * 5_000 * 5e-5)


def test_a_queue_that_takes_minutes_to_settle_is_not_there_in_seconds() -> None:
    """20 prompts of 50 ms a second: 4 s bring 9 more than expected by chance."""
    busy = seen(arrival_rate=20.0, prefill_duty=0.97)
    (present, *_) = outlooks(inputs(busy, FAST_PREFILL))
    assert present.ttft_ms == pytest.approx(50 * (1 + math.log(10) * 80**0.5 / 2))
    light = outlooks(inputs(seen(), FAST_PREFILL))[0].ttft_ms
    assert light == pytest.approx(50 * (1 + math.log(10) * 0.5 * 0.25 / 0.75))


def test_it_moves_to_prefill_before_a_latency_is_over() -> None:
    decision = decide_from(
        inputs(seen(waiting_prompt_tokens=60_000, tpot_ms=10.0), FAST_DECODE)
    )
    assert decision.reason is Reason.TTFT_FAILS
    assert decision.allocation == FAST_PREFILL
    assert decision.failing == (InstanceRole.PREFILL,)


def test_it_moves_to_decode_at_the_pace_of_running_requests() -> None:
    decision = decide_from(inputs(seen(tpot_ms=40.0), FAST_PREFILL))
    assert decision.reason is Reason.TPOT_FAILS
    assert decision.allocation == FAST_DECODE


def test_as_many_as_possible_inside_both_not_the_lesser_excess() -> None:
    """Few wait a little too long here; at the other split nearly all would be slow."""
    queued = seen(
        waiting_prompt_tokens=12_000, arrival_rate=16.0, prefill_duty=0.95, tpot_ms=20.0
    )
    slow = SplitOffer(SMAllocation(90, 10), WorkerSpeeds(1.0, 1.0, 0.22, 0.3))
    limits = replace(LIMITS, offers=(OFFERS[1], slow), least_gain=0.05)
    present, other = outlooks(inputs(queued, FAST_PREFILL, limits=limits))
    assert present.ttft_ms > 500 and present.excess > other.excess
    assert other.tpot_ms > 25
    assert present.share > other.share
    decision = decide_from(inputs(queued, FAST_PREFILL, limits=limits))
    assert decision.allocation == FAST_PREFILL


def test_shares_at_the_edge() -> None:
    """At the target half of the requests are inside TPOT, none behind a long queue."""
    even = summary(25.0)
    at_target = inputs(seen(running_tpot=even), FAST_PREFILL)
    share = outlooks(at_target)[0].share
    assert share == pytest.approx(0.5, abs=0.1)
    fast = outlooks(inputs(seen(tpot_ms=10.0, arrival_rate=0.1), FAST_PREFILL))[0]
    assert fast.share == pytest.approx(1.0, abs=0.01)
    hopeless = seen(waiting_prompt_tokens=200_000, tpot_ms=10.0)
    assert outlooks(inputs(hopeless, FAST_PREFILL))[0].share < 0.01


def test_a_move_must_promise_something() -> None:
    limits = replace(LIMITS, least_gain=0.9)
    decision = decide_from(inputs(seen(tpot_ms=40.0), FAST_PREFILL, limits=limits))
    assert decision.reason is Reason.OTHER_SLO_WOULD_FAIL
    assert decision.allocation == FAST_PREFILL


def test_it_rests_after_a_move() -> None:
    state = ControlState(last_change_s=99.0)
    decision = decide_from(inputs(seen(tpot_ms=40.0), FAST_PREFILL, state=state))
    assert decision.reason is Reason.COOLING_DOWN


@pytest.mark.parametrize("mode", list(ControlMode))
def test_only_auto_gives_up_splitting_and_not_at_once(mode: ControlMode) -> None:
    limits = replace(LIMITS, mode=mode, offers=OFFERS[1:])
    overloaded = seen(
        arrival_rate=19.0, waiting_prompt_tokens=30_000, prefill_duty=0.95
    )
    first = decide_from(inputs(overloaded, FAST_PREFILL, limits=limits))
    assert first.allocation == FAST_PREFILL
    state = replace(first.state, hopeless_windows=limits.patience_windows)
    limits = replace(limits, least_gain=0.01)
    last = decide_from(inputs(overloaded, FAST_PREFILL, limits=limits, state=state))
    gave_up = last.allocation == UNPARTITIONED
    assert gave_up is (mode is ControlMode.AUTO)
    assert ("plain scheduling" in last.advice) or not gave_up


def test_its_line_reads_back_and_decides_alike() -> None:
    given_inputs = inputs(seen(tpot_ms=40.0), FAST_PREFILL)
    decision = decide_from(given_inputs)
    record = decode_line(encode_line(DecisionRecord(given_inputs, decision)))
    assert record.inputs.limits == LIMITS
    assert decide_from(record.inputs).allocation == decision.allocation


figures = st.one_of(
    st.floats(0, 1e6), st.just(math.nan), st.just(math.inf), st.just(0.0)
)


@settings(max_examples=200, deadline=None)
@given(
    rate=figures,
    duty=figures,
    cost=figures,
    tpot_ms=figures,
    waiting=st.integers(0, 10**9),
    current=st.sampled_from([offer.allocation for offer in OFFERS]),
    mode=st.sampled_from(list(ControlMode)),
    hopeless=st.integers(0, 5),
)
def test_no_decision_leaves_the_offers(  # noqa: PLR0913 - one per drawn input
    rate: float,
    duty: float,
    cost: float,
    tpot_ms: float,
    waiting: int,
    current: SMAllocation,
    mode: ControlMode,
    hopeless: int,
) -> None:
    snapshot = seen(
        arrival_rate=rate,
        prefill_duty=duty,
        prefill_s_per_token=cost,
        tpot_ms=tpot_ms,
        waiting_prompt_tokens=waiting,
    )
    state = ControlState(hopeless_windows=hopeless)
    given_inputs = inputs(
        snapshot, current, limits=replace(LIMITS, mode=mode), state=state
    )
    decision = decide_from(given_inputs)
    assert LIMITS.offer_of(decision.allocation) is not None
    figures = (rate, duty, cost, tpot_ms)
    if not all(map(math.isfinite, figures)):
        assert decision.allocation == current


def test_algorithm_1_steps_along_offers_without_speeds() -> None:
    limits = ControlLimits(
        offers=tuple(SplitOffer(SMAllocation(x, 100 - x)) for x in (10, 50, 90))
    )
    halves = SMAllocation(50, 50)
    assert increased(halves, InstanceRole.PREFILL, limits) == SMAllocation(90, 10)
    assert increased(halves, InstanceRole.DECODE, limits) == SMAllocation(10, 90)
    end = SMAllocation(90, 10)
    assert increased(end, InstanceRole.PREFILL, limits) == end
    assert within_bounds(SMAllocation(70, 30), limits) in (halves, end)


def test_a_cheap_move_may_be_made_often() -> None:
    def pace(cost_s: float, *, known: bool) -> ControlPace:
        return ControlPace.for_move(
            cost_s, interval_s=10.0, window_s=30.0, speeds_are_known=known
        )

    assert pace(1e-4, known=True) == ControlPace(1.0, 5.0, 2.0, is_cheap=True)
    assert pace(30.0, known=True) == ControlPace(10.0, 30.0, 120.0)
    assert pace(1e-4, known=False) == ControlPace(10.0, 30.0, 15.0)


def test_a_speed_is_positive() -> None:
    with pytest.raises(ValueError, match="decode_beside"):
        WorkerSpeeds(1.0, 1.0, 0.0, 1.0)
    assert UNPARTITIONED in default_splits(overlap_allowed=True)
    assert not any(s.is_overlapping for s in default_splits(overlap_allowed=False))
