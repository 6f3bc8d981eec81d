# SPDX-License-Identifier: Apache-2.0
"""Decision lines read back exactly, and any policy can be run on them."""

from __future__ import annotations

import json
import math

import pytest
from sglang.semi_pd.control.decision_inputs import DecisionInputs
from sglang.semi_pd.control.decision_log import DecisionRecord, decode_line, encode_line
from sglang.semi_pd.control.latency_model import LatencyModel
from sglang.semi_pd.control.slo_policy import decide_from
from sglang.semi_pd.errors import ConfigError
from sglang.semi_pd.simulation.replay import named_policy, replay, with_targets
from sglang.semi_pd.slo_types import (
    ControlLimits,
    ControlState,
    MetricsSnapshot,
    SLOConstraints,
)
from sglang.semi_pd.sm_allocation import SMAllocation
from sglang.semi_pd.utils import InstanceRole
from slo_plant import Plant, snapshot_of

SLO = SLOConstraints(230.0, 26.0)


def record_of(
    snapshot: MetricsSnapshot, model: LatencyModel | None = None
) -> DecisionRecord:
    inputs = DecisionInputs(
        snapshot=snapshot,
        current=SMAllocation(50, 50),
        constraints=SLO,
        model=model or LatencyModel(),
        limits=ControlLimits(),
        state=ControlState(favoured=InstanceRole.DECODE, last_change_s=-100.0),
    )
    return DecisionRecord(inputs, decide_from(inputs))


@pytest.fixture
def lines() -> list[str]:
    """Three windows: one met, one failing on TTFT, one empty."""
    windows = (
        snapshot_of(50.0, 10.0),
        snapshot_of(900.0, 10.0),
        MetricsSnapshot(taken_at_s=60.0, window_s=30.0),
    )
    return [encode_line(record_of(window)) for window in windows]


def test_a_line_is_strict_json_and_reads_back() -> None:
    record = record_of(snapshot_of(900.0, 10.0))
    line = encode_line(record)
    assert "\n" not in line
    json.loads(line, parse_constant=pytest.fail)
    back = decode_line(line)
    assert back.inputs.snapshot == record.inputs.snapshot
    assert back.inputs.state == record.inputs.state
    assert back.decision.allocation == record.decision.allocation
    assert back.decision.failing == record.decision.failing
    assert math.isnan(back.inputs.model.ttft_error)


def test_the_recorded_policy_decides_the_same_again(lines: list[str]) -> None:
    report = replay(lines)
    assert (report.decisions, report.differences, report.unreadable) == (3, (), ())


def test_another_policy_shows_where_it_differs(lines: list[str]) -> None:
    report = replay(lines, named_policy("static:50/50"))
    (difference,) = report.differences
    assert difference.line == 2
    assert difference.recorded.prefill_percentage > 50
    assert difference.replayed == SMAllocation(50, 50)


def test_other_targets_can_be_asked_about(lines: list[str]) -> None:
    policy = with_targets(
        named_policy("controller"), ttft_target_ms=1000.0, tpot_target_ms=None
    )
    (difference,) = replay(lines, policy).differences
    assert difference.replayed == SMAllocation(50, 50)


def test_the_papers_listing_raises_prefill_when_both_fail() -> None:
    model = LatencyModel(ttft_scale_ms=400.0)
    lines = [encode_line(record_of(snapshot_of(900.0, 90.0), model))]
    (difference,) = replay(lines, named_policy("listing")).differences
    assert difference.recorded == SMAllocation(50, 50)
    assert difference.replayed.prefill_percentage > 50


def test_broken_lines_are_reported_and_skipped(lines: list[str]) -> None:
    broken = ["{", "[]", '{"kind":"semi_pd_decision","version":9}', "", lines[0][:-2]]
    broken.append('{"kind":"semi_pd_decision","version":1}')
    report = replay([*broken, *lines])
    assert report.decisions == 3
    assert [number for number, _ in report.unreadable] == [1, 2, 3, 5, 6]


@pytest.mark.parametrize("name", ["", "static", "static:", "other"])
def test_unknown_policies_are_named(name: str) -> None:
    with pytest.raises(ConfigError):
        named_policy(name)


def test_a_whole_run_replays_without_a_difference() -> None:
    plant = Plant(SLO, SMAllocation(20, 80))
    plant.run(20)
    splits = zip(plant.splits[1:], plant.decisions, strict=True)
    assert all(split == decision.allocation for split, decision in splits)
