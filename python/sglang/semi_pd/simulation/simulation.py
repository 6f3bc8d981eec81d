# SPDX-License-Identifier: Apache-2.0
"""What-if questions: a trace, a split or a controller, and what clients would see."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from sglang.semi_pd.control.sliding_window import summarise
from sglang.semi_pd.metrics_collector import SemiPDMetricsCollector
from sglang.semi_pd.simulation import client_view
from sglang.semi_pd.simulation.simulator import InstanceSimulator
from sglang.semi_pd.simulation.simulator_coefficients import SimulatorCoefficients
from sglang.semi_pd.simulation.trace import Trace
from sglang.semi_pd.slo_algorithm import SLOAwareResourceController
from sglang.semi_pd.slo_types import (
    ControlLimits,
    Decision,
    LatencySummary,
    SLOConstraints,
)
from sglang.semi_pd.sm_allocation import SMAllocation

__all__ = ["ControlledRun", "SimulationReport", "simulate", "simulate_controlled"]


@dataclass(frozen=True, slots=True)
class SimulationReport:
    """What clients would see: latencies in milliseconds, rates per second.

    ``slo_attainment`` is the part of all requests, 0 to 1, that meet both targets.
    """

    name: str
    requests: int
    ttft: LatencySummary
    tpot: LatencySummary
    worst_gap: LatencySummary
    slo_attainment: float
    request_throughput: float
    prefill_utilisation: float
    decode_utilisation: float

    def as_dict(self) -> dict[str, object]:
        """Return the report as nested plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ControlledRun:
    """A run in which the controller moved the split, and when it did what."""

    report: SimulationReport
    splits: tuple[tuple[float, SMAllocation], ...]
    decisions: tuple[Decision, ...]


def simulate(
    trace: Trace,
    allocation: SMAllocation,
    constraints: SLOConstraints,
    *,
    coefficients: SimulatorCoefficients | None = None,
    gpus: int = 1,
) -> SimulationReport:
    """Serve the whole trace under one split, round robin over ``gpus`` instances."""
    coefficients = coefficients or SimulatorCoefficients.builtin()
    instances = [
        InstanceSimulator(trace.part(index, gpus), coefficients, allocation)
        for index in range(gpus)
    ]
    for instance in instances:
        instance.advance()
    return _report(str(allocation), instances, constraints)


def simulate_controlled(  # noqa: PLR0913 - three of them have defaults
    trace: Trace,
    start: SMAllocation,
    constraints: SLOConstraints,
    *,
    limits: ControlLimits | None = None,
    coefficients: SimulatorCoefficients | None = None,
    interval_s: float = 10.0,
    window_s: float = 30.0,
) -> ControlledRun:
    """Serve the trace on one instance while the real controller moves its split."""
    coefficients = coefficients or SimulatorCoefficients.builtin()
    instance = InstanceSimulator(trace, coefficients, start)
    plant = _Plant(instance, coefficients.request_overhead_s, window_s)
    controller = SLOAwareResourceController(
        constraints,
        plant.collector,
        plant,
        limits=limits,
        clock=lambda: plant.now_s,
    )
    decisions = []
    while np.isnan(instance.completion_s).any():
        plant.advance(plant.now_s + interval_s)
        decisions.append(controller.tick(plant.now_s))
    report = _report("controlled", [instance], constraints)
    return ControlledRun(report, tuple(plant.splits), tuple(decisions))


class _Plant:
    """The simulated instance as the controller's actuator and event source."""

    def __init__(
        self, instance: InstanceSimulator, overhead_s: float, window_s: float
    ) -> None:
        self._instance = instance
        self._overhead_s = overhead_s
        self._arrivals_seen = 0
        self._first_tokens_seen = 0
        self._completions_seen = 0
        self.now_s = 0.0
        self.splits = [(0.0, instance.allocation)]
        self.collector = SemiPDMetricsCollector(
            window_s,
            clock=lambda: self.now_s,
            progress=lambda request_id: instance.tokens_so_far(int(request_id)),
        )

    @property
    def current_allocation(self) -> SMAllocation:
        return self._instance.allocation

    def request_sm_reallocation(self, allocation: SMAllocation) -> bool:
        self._instance.set_allocation(allocation)
        self.splits.append((self.now_s, allocation))
        return True

    def advance(self, until_s: float) -> None:
        """Run the instance and tell the collector what clients saw meanwhile."""
        self._instance.advance(until_s)
        self.now_s = until_s
        for when_s, kind, index in sorted(self._new_events(until_s)):
            self._tell(when_s, kind, index)
        self.collector.set_queue_lengths(prefill=self._instance.queue_length, decode=0)

    def _new_events(self, until_s: float) -> list[tuple[float, int, int]]:
        instance, trace = self._instance, self._instance.trace
        arrived = int(np.searchsorted(trace.arrival_s, until_s, side="right"))
        first_tokens = instance.first_token_order
        completions = instance.completion_order
        events = [
            (float(trace.arrival_s[index]), 0, index)
            for index in range(self._arrivals_seen, arrived)
        ]
        for index in first_tokens[self._first_tokens_seen :]:
            events.append((float(instance.first_token_s[index]), 1, index))
        for index in completions[self._completions_seen :]:
            events.append((float(instance.completion_s[index]), 2, index))
        self._arrivals_seen = arrived
        self._first_tokens_seen = len(first_tokens)
        self._completions_seen = len(completions)
        return events

    def _tell(self, when_s: float, kind: int, index: int) -> None:
        trace, collector = self._instance.trace, self.collector
        request_id = str(index)
        if kind == 0:
            length = int(trace.input_length[index])
            seen_s = when_s - self._overhead_s
            collector.record_request_arrival(request_id, length, now=seen_s)
        elif kind == 1:
            collector.record_first_token(request_id, now=when_s)
        else:
            length = int(trace.output_length[index])
            collector.record_request_completion(request_id, length, now=when_s)


def _report(
    name: str,
    instances: list[InstanceSimulator],
    constraints: SLOConstraints,
) -> SimulationReport:
    ttft_ms = 1e3 * np.concatenate([client_view.ttft_s(i) for i in instances])
    tpot_ms = 1e3 * np.concatenate([client_view.tpot_s(i) for i in instances])
    gap_ms = 1e3 * np.concatenate([client_view.worst_gap_s(i) for i in instances])
    meets = ttft_ms <= constraints.ttft_target_ms
    meets &= ~(tpot_ms > constraints.tpot_target_ms)
    ends_s = max(float(np.nanmax(i.completion_s)) for i in instances)
    begins_s = min(float(i.trace.arrival_s[0]) for i in instances)
    span_s = max(ends_s - begins_s, 1e-9)
    return SimulationReport(
        name=name,
        requests=len(ttft_ms),
        ttft=summarise(ttft_ms[np.isfinite(ttft_ms)]),
        tpot=summarise(tpot_ms[np.isfinite(tpot_ms)]),
        worst_gap=summarise(gap_ms[np.isfinite(gap_ms)]),
        slo_attainment=float(meets.mean()),
        request_throughput=len(ttft_ms) / span_s,
        prefill_utilisation=float(np.mean([i.prefill_busy_s for i in instances]))
        / span_s,
        decode_utilisation=float(np.mean([i.decode_busy_s for i in instances]))
        / span_s,
    )
