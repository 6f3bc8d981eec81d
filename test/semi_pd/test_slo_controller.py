# SPDX-License-Identifier: Apache-2.0
"""The controller around decide(): threads, actuation, episodes, records, status."""

from __future__ import annotations

import json
import logging
import re
import time
from pathlib import Path

import pytest
from sglang.semi_pd.control.decision_log import decode_line
from sglang.semi_pd.errors import RotationError
from sglang.semi_pd.metrics_collector import SemiPDMetricsCollector
from sglang.semi_pd.process_rotation_manager import ProcessRotationManager
from sglang.semi_pd.slo_algorithm import (
    ControlLimits,
    ControlMode,
    SLOAwareResourceController,
    SLOConstraints,
)
from sglang.semi_pd.slo_types import Reason
from sglang.semi_pd.sm_allocation import SMAllocation

HALVES = SMAllocation(50, 50)
SLO = SLOConstraints(ttft_target_ms=100.0, tpot_target_ms=50.0)


class Rotation:
    """An actuator that applies a split at once, unless told to refuse."""

    def __init__(self) -> None:
        self.current_allocation = HALVES
        self.asked: list[SMAllocation] = []
        self.is_willing = True

    def request_sm_reallocation(self, allocation: SMAllocation) -> bool:
        self.asked.append(allocation)
        if self.is_willing:
            self.current_allocation = allocation
        return self.is_willing


class Bench:
    """A controller on a clock that the test moves."""

    def __init__(
        self,
        limits: ControlLimits | None = None,
        log: Path | None = None,
        actuator: ProcessRotationManager | None = None,
    ) -> None:
        self.now_s = 0.0
        self.served = 0
        self.rotation = Rotation()
        self.collector = SemiPDMetricsCollector(30.0, clock=lambda: self.now_s)
        self.controller = SLOAwareResourceController(
            slo_constraints=SLO,
            metrics_collector=self.collector,
            process_rotation_manager=actuator or self.rotation,
            limits=limits,
            decision_log=log,
            clock=lambda: self.now_s,
        )

    def serve(self, ttft_ms: float, tpot_ms: float) -> Reason:
        """Serve 30 s of requests with these latencies, then tick."""
        for _ in range(30):
            self.served += 1
            self.now_s += 1.0
            request_id, first_s = str(self.served), self.now_s + ttft_ms / 1e3
            self.collector.record_request_arrival(request_id, 500, now=self.now_s)
            self.collector.record_first_token(request_id, now=first_s)
            end_s = first_s + 10 * tpot_ms / 1e3
            self.collector.record_request_completion(request_id, 11, now=end_s)
        return self.controller.tick().reason

    @property
    def statistics(self) -> dict[str, object]:
        return self.controller.get_status()["statistics"]


def test_a_failing_slo_moves_the_split() -> None:
    bench = Bench()
    assert bench.serve(300.0, 10.0) is Reason.TTFT_FAILS
    assert bench.rotation.current_allocation.prefill_percentage > 50
    assert bench.statistics["adjustments"] == 1
    status = bench.controller.get_status()
    assert status["current_sm_allocation"] == bench.rotation.asked[0].as_dict()
    assert status["is_violating"] is True
    json.dumps(status)


def test_a_change_does_not_shorten_the_window_of_arrivals(tmp_path: Path) -> None:
    """Latencies of the old split prove nothing; prompts come as they came."""
    log = tmp_path / "decisions.jsonl"
    bench = Bench(log=log)
    assert bench.serve(300.0, 10.0) is Reason.TTFT_FAILS
    bench.now_s += 2.0
    bench.controller.tick()
    line = log.read_text(encoding="utf-8").splitlines()[-1]
    snapshot = decode_line(line).inputs.snapshot
    assert snapshot.arrival_rate == pytest.approx(28 / 30, abs=0.04)
    assert snapshot.mean_input_length == 500
    assert snapshot.ttft.count <= 1


def test_a_refused_split_is_counted_and_waited_out() -> None:
    bench = Bench(ControlLimits(cooldown_s=45.0))
    bench.rotation.is_willing = False
    assert bench.serve(300.0, 10.0) is Reason.TTFT_FAILS
    assert bench.serve(300.0, 10.0) is Reason.COOLING_DOWN
    assert bench.serve(300.0, 10.0) is Reason.TTFT_FAILS
    assert bench.rotation.current_allocation == HALVES
    assert bench.statistics["refused_adjustments"] == 2
    assert bench.statistics["adjustments"] == 0


def test_advice_is_given_and_not_taken() -> None:
    bench = Bench(ControlLimits(mode=ControlMode.ADVISE))
    assert bench.serve(300.0, 10.0) is Reason.TTFT_FAILS
    assert bench.rotation.asked == []
    last = bench.controller.get_status()["last_decision"]
    assert last["sm_allocation"]["prefill_percentage"] > 50


def test_a_violation_is_logged_once_per_episode(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench()
    with caplog.at_level(logging.INFO):
        for ttft_ms in (300, 300, 300, 50, 50, 300):
            bench.serve(ttft_ms, 10.0)
    lines = [r.message for r in caplog.records if "SLO VIOLATION" in r.message]
    assert len(lines) == 2
    wanted = r"SLO VIOLATION DETECTED: TTFT P95 300\.0 ms \(target 100\.0\), TPOT"
    assert re.match(wanted, lines[0])
    assert sum("SLO met again" in r.message for r in caplog.records) == 1
    assert bench.statistics["violation_episodes"] == 2


def test_every_decision_is_one_line_that_reads_back(tmp_path: Path) -> None:
    log = tmp_path / "decisions.jsonl"
    bench = Bench(log=log)
    bench.controller.tick()
    bench.serve(300.0, 10.0)
    records = [decode_line(line) for line in log.read_text().splitlines()]
    reasons = [record.decision.reason for record in records]
    assert reasons == [Reason.TOO_FEW_SAMPLES, Reason.TTFT_FAILS]
    assert records[1].inputs.constraints == SLO
    assert records[1].decision.allocation == bench.rotation.current_allocation


def test_a_new_split_is_not_judged_by_the_latencies_of_the_old_one() -> None:
    bench = Bench(ControlLimits(cooldown_s=0.0))
    bench.serve(300.0, 10.0)
    assert bench.controller.tick().reason is Reason.TOO_FEW_SAMPLES


class Mechanism:
    """Moves at once, and has something to tell of it, or refuses."""

    can_move = True
    is_willing = True

    def apply(self, allocation: SMAllocation) -> str:
        if not self.is_willing:
            raise RotationError(f"{allocation} is not in force", why="of a test")
        return "standby 0.00 s"


@pytest.mark.parametrize("outcome", ["moves", "stays"])
def test_a_move_is_one_line_of_the_log_with_its_reason(
    outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    mechanism = Mechanism()
    mechanism.is_willing = outcome == "moves"
    rotation = ProcessRotationManager(mechanism, HALVES, allow_overlap=False)
    reason = Bench(actuator=rotation).serve(300.0, 10.0)
    said = [one.getMessage() for one in caplog.records]
    (line,) = [one for one in said if "SLO VIOLATION" not in one]
    first, _, rest = line.partition("\n")
    assert f"({reason.value})" in first
    if mechanism.is_willing:
        assert first.startswith("The split moved from 50/50 to ") and not rest
        assert first.endswith(" s: standby 0.00 s")
    else:
        assert first.startswith("The split stays 50/50 ") and "of a test" in rest


def test_the_thread_ticks_survives_a_bad_tick_and_stops(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Rotation):
        def request_sm_reallocation(self, allocation: SMAllocation) -> bool:
            raise RuntimeError("no MPS daemon")

    collector = SemiPDMetricsCollector(30.0)
    for index in range(20):
        now = time.monotonic() - 1
        collector.record_request_arrival(str(index), 500, now=now)
        collector.record_first_token(str(index), now=now + 0.5)
        collector.record_request_completion(str(index), 11, now=now + 0.6)
    controller = SLOAwareResourceController(
        SLO, collector, Broken(), monitoring_interval_s=0.01
    )
    controller.start_monitoring()
    controller.start_monitoring()
    assert controller.get_status()["is_running"]
    deadline_s = time.monotonic() + 10
    while controller.get_status()["statistics"]["failed_ticks"] < 2:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    controller.stop_monitoring()
    controller.stop_monitoring()
    assert not controller.get_status()["is_running"]
    assert "no MPS daemon" in caplog.text


def test_an_interval_is_positive() -> None:
    with pytest.raises(ValueError, match="monitoring_interval_s"):
        SLOAwareResourceController(
            SLO, SemiPDMetricsCollector(), Rotation(), monitoring_interval_s=0
        )


GUIDE_BLOCK = """
from sglang.semi_pd.slo_algorithm import SLOConstraints, SLOAwareResourceController
from sglang.semi_pd.metrics_collector import SemiPDMetricsCollector

slo_constraints = SLOConstraints(
    ttft_target_ms=100.0,
    tpot_target_ms=50.0,
)
metrics_collector = SemiPDMetricsCollector(window_size_seconds=30.0)
slo_controller = SLOAwareResourceController(
    slo_constraints=slo_constraints,
    metrics_collector=metrics_collector,
    process_rotation_manager=rotation_manager,
)
slo_controller.start_monitoring()
metrics_collector.record_request_arrival("req_1", input_length=1024)
metrics_collector.record_first_token("req_1")
metrics_collector.record_request_completion("req_1", output_length=256)
real_time_metrics = metrics_collector.get_real_time_metrics()
print(f"TTFT P95: {real_time_metrics['ttft_p95_ms']:.1f}ms")
print(f"TPOT P95: {real_time_metrics['tpot_p95_ms']:.1f}ms")
slo_controller.stop_monitoring()
"""


def test_the_guides_code_runs_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    exec(GUIDE_BLOCK, {"rotation_manager": Rotation()})
    assert re.match(
        r"TTFT P95: \d+\.\dms\nTPOT P95: \d+\.\dms\n", capsys.readouterr().out
    )


def test_a_new_start_forgets_what_was_before_the_pause() -> None:
    """A move made before the pause must not hold back one after it."""
    bench = Bench(ControlLimits(cooldown_s=1e6))
    assert bench.serve(300.0, 10.0) is Reason.TTFT_FAILS
    assert bench.serve(300.0, 10.0) is Reason.COOLING_DOWN
    bench.controller.set_rhythm(ControlLimits(cooldown_s=1e6), 1e6)
    bench.controller.start_monitoring()
    bench.controller.stop_monitoring()
    assert bench.serve(300.0, 10.0) is Reason.TTFT_FAILS
