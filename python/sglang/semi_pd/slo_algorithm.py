# SPDX-License-Identifier: Apache-2.0
"""The controller that keeps TTFT and TPOT inside the operator's SLOs.

The decision itself is ``slo_policy.decide``; this file feeds it windows, applies what
it decides and records both.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from sglang.semi_pd.control.decision_inputs import DECODE, PREFILL, DecisionInputs
from sglang.semi_pd.control.decision_log import DecisionRecord, encode_line
from sglang.semi_pd.control.latency_model import LatencyModel, LatencyModelFitter
from sglang.semi_pd.control.slo_policy import decide_from
from sglang.semi_pd.metrics_collector import SemiPDMetricsCollector
from sglang.semi_pd.slo_types import (
    ControlLimits,
    ControlMode,
    ControlState,
    Decision,
    Reason,
    SLOConstraints,
)
from sglang.semi_pd.sm_allocation import SMAllocation

__all__ = [
    "AllocationActuator",
    "ControlLimits",
    "ControlMode",
    "LatencyModel",
    "SLOAwareResourceController",
    "SLOConstraints",
]

logger = logging.getLogger(__name__)
decision_logger = logging.getLogger(f"{__name__}.decisions")

_NO_EVIDENCE = (Reason.TOO_FEW_SAMPLES, Reason.NOT_A_NUMBER)


class AllocationActuator(Protocol):
    """What the controller needs of the process rotation manager."""

    @property
    def current_allocation(self) -> SMAllocation:
        """The split in force."""

    def request_sm_reallocation(self, allocation: SMAllocation) -> bool:
        """Bring a split into force; False leaves the old one serving."""


@runtime_checkable
class ToldWhy(Protocol):
    """An actuator that logs its moves itself, with the reason that it is told."""

    def move(self, allocation: SMAllocation, why: str) -> bool:
        """As ``request_sm_reallocation``."""


class SLOAwareResourceController:
    """Watches the window and moves SMs to the worker whose SLO fails.

    It lives in the server's main process and owns one daemon thread, which calls
    ``tick`` every interval. Ticks do not overlap, so state needs no lock beyond the
    one that ``get_status`` shares with it.

    Args:
        slo_constraints: the targets.
        metrics_collector: where the windows come from.
        process_rotation_manager: what applies a split.
        limits: how far, how often and on what evidence to act.
        monitoring_interval_s: time between ticks, seconds.
        decision_log: file to which each decision is appended as a line of JSON.
        model_prior: latency model to start from.
        clock: time source, seconds; the collector's must be the same.
    """

    def __init__(  # noqa: PLR0913 - the guide's three, then what has defaults
        self,
        slo_constraints: SLOConstraints,
        metrics_collector: SemiPDMetricsCollector,
        process_rotation_manager: AllocationActuator,
        *,
        limits: ControlLimits | None = None,
        monitoring_interval_s: float = 10.0,
        decision_log: Path | None = None,
        model_prior: LatencyModel | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not monitoring_interval_s > 0:
            raise ValueError(
                f"monitoring_interval_s must be positive, not {monitoring_interval_s!r}"
            )
        self.slo_constraints = slo_constraints
        self.limits = limits or ControlLimits()
        self._collector = metrics_collector
        self._actuator = process_rotation_manager
        self._interval_s = monitoring_interval_s
        self._decision_log = decision_log
        self._clock = clock
        self._fitter = LatencyModelFitter(model_prior)
        self._state = ControlState()
        self._last_decision: Decision | None = None
        self._is_violating = False
        self._counts: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def set_rhythm(self, limits: ControlLimits, interval_s: float) -> None:
        """Decide within other limits, and look as often, from the next tick on."""
        self.limits, self._interval_s = limits, interval_s

    def start_monitoring(self) -> None:
        """Start ticking; does nothing if it already ticks.

        What was remembered before a pause is forgotten: the split may have moved.
        """
        if self._thread is not None:
            return
        # An event of its own: a thread whose last tick outlasted the wait for it ends.
        self._stopping = threading.Event()
        self._state = ControlState()
        self._collector.look_at_running(now=self._clock())
        self._thread = threading.Thread(
            target=self._run,
            args=(self._stopping,),
            name="semi-pd-slo-controller",
            daemon=True,
        )
        self._thread.start()

    def stop_monitoring(self, timeout_s: float = 5.0) -> None:
        """Stop ticking; a tick under way is waited for at most ``timeout_s``."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._stopping.set()
        thread.join(timeout_s)
        if thread.is_alive():
            logger.warning("the SLO controller's last tick outlasts %.1f s", timeout_s)

    def tick(self, now: float | None = None) -> Decision:
        """Judge the window that ends now and apply the decision."""
        now = self._clock() if now is None else now
        inputs = self._observe(now)
        decision = decide_from(inputs)
        self._note_violation(inputs, decision)
        self._record(DecisionRecord(inputs, decision))
        if decision.allocation == inputs.current:
            self._remember(decision, decision.state)
        elif inputs.limits.is_advice_only:
            logger.info("advice: use the split %s", decision.allocation)
            self._remember(decision, inputs.state)
        else:
            self._apply(inputs, decision)
        return decision

    def get_status(self) -> dict[str, Any]:
        """Return what an operator wants to see, ready for JSON."""
        with self._lock:
            last = self._last_decision
            return {
                "is_running": self._thread is not None,
                "mode": self.limits.mode.value,
                "slo_constraints": asdict(self.slo_constraints),
                "current_sm_allocation": self._actuator.current_allocation.as_dict(),
                "is_violating": self._is_violating,
                "latency_model": asdict(self._fitter.model),
                "last_decision": None
                if last is None
                else {
                    "sm_allocation": last.allocation.as_dict(),
                    "reason": last.reason.value,
                    "advice": last.advice,
                },
                "statistics": {
                    "decisions": self._counts["decisions"],
                    "adjustments": self._counts["adjustments"],
                    "refused_adjustments": self._counts["refused_adjustments"],
                    "violation_episodes": self._counts["violation_episodes"],
                    "failed_ticks": self._counts["failed_ticks"],
                    "reasons": dict(self._reasons),
                },
            }

    def _run(self, stopping: threading.Event) -> None:
        while not stopping.wait(self._interval_s):
            try:
                self.tick()
            except Exception:  # noqa: BLE001 - one bad tick must not end control
                logger.exception("an SLO controller tick failed; the split is kept")
                with self._lock:
                    self._counts["failed_ticks"] += 1

    def _observe(self, now: float) -> DecisionInputs:
        """Take the window since the last change and learn from it.

        What arrives depends on no split: a change does not shorten its window, in which
        a few seconds of Poisson arrivals look like another load. A turn of it does.
        """
        current, limits = self._actuator.current_allocation, self.limits
        since_s, slo = now - limits.window_s, self.slo_constraints
        turned_s = self._collector.arrivals_turned_at_s(since_s, now=now)
        since_s = max(since_s, self._state.last_change_s or since_s)
        arrivals = snapshot = self._collector.snapshot(now=now, since_s=since_s)
        if turned_s != since_s:
            arrivals = self._collector.snapshot(now=now, since_s=turned_s)
        running = self._collector.look_at_running(now=now)
        snapshot = replace(
            snapshot, running_tpot=running.tpot, prefill_duty=running.prefill_duty
        )
        model = self._fitter.model
        if min(snapshot.ttft.count, snapshot.tpot.count) >= limits.min_samples:
            percentile = slo.percentile
            model = self._fitter.observe(snapshot, current, percentile=percentile)
        snapshot = replace(
            snapshot,
            arrival_rate=arrivals.arrival_rate,
            mean_input_length=arrivals.mean_input_length,
        )
        return DecisionInputs(snapshot, current, slo, model, limits, self._state)

    def _note_violation(self, inputs: DecisionInputs, decision: Decision) -> None:
        """Log the start and the end of an episode of failing SLOs, once each."""
        if decision.reason in _NO_EVIDENCE:
            return
        workers = (PREFILL, DECODE)
        is_violating = any(inputs.observed_ms(r) > inputs.target_ms(r) for r in workers)
        if is_violating == self._is_violating:
            return
        constraints = inputs.constraints
        figures = (
            f"TTFT P{constraints.percentile} {inputs.observed_ms(PREFILL):.1f} ms "
            f"(target {constraints.ttft_target_ms:.1f}), "
            f"TPOT P{constraints.percentile} {inputs.observed_ms(DECODE):.1f} ms "
            f"(target {constraints.tpot_target_ms:.1f}), "
            f"{inputs.snapshot.arrival_rate:.2f} req/s, split {inputs.current}"
        )
        if is_violating:
            logger.warning("SLO VIOLATION DETECTED: %s", figures)
            self._counts["violation_episodes"] += 1
        else:
            logger.info("SLO met again: %s", figures)
        self._is_violating = is_violating

    def _apply(self, inputs: DecisionInputs, decision: Decision) -> None:
        """Ask for the new split; a refusal costs a cool-down and changes nothing else.

        The change counts from when it is in force, since a rotation takes seconds.
        """
        asked_at_s = self._clock()
        actuator, split = self._actuator, decision.allocation
        if isinstance(actuator, ToldWhy):
            is_applied = actuator.move(split, decision.reason.value)
        else:
            is_applied = actuator.request_sm_reallocation(split)
            outcome = "applied" if is_applied else "refused"
            logger.info("split %s (%s): %s", split, decision.reason.value, outcome)
        took_s = self._clock() - asked_at_s
        changed_at_s = inputs.snapshot.taken_at_s + took_s
        state = decision.state if is_applied else inputs.state
        self._remember(decision, replace(state, last_change_s=changed_at_s))
        with self._lock:
            self._counts["adjustments" if is_applied else "refused_adjustments"] += 1

    def _remember(self, decision: Decision, state: ControlState) -> None:
        with self._lock:
            self._state = state
            self._last_decision = decision
            self._counts["decisions"] += 1
            self._reasons[decision.reason.value] += 1

    def _record(self, record: DecisionRecord) -> None:
        if self._decision_log is None and not decision_logger.isEnabledFor(
            logging.DEBUG
        ):
            return
        line = encode_line(record)
        decision_logger.debug("%s", line)
        if self._decision_log is not None:
            with self._decision_log.open("a", encoding="utf-8") as log:
                log.write(line + "\n")
