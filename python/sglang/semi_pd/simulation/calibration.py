# SPDX-License-Identifier: Apache-2.0
"""Fitting the simulator to a measured run, and judging it by another one.

A run is played again, request by request, and the step times are changed until every
request's TTFT and TPOT come out as measured. The search is a pattern search over the
logarithms of a few coefficients: it needs no gradient, and the same run always gives
the same fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from sglang.semi_pd.simulation.measured_run import MeasuredRun
from sglang.semi_pd.simulation.simulator import InstanceSimulator
from sglang.semi_pd.simulation.simulator_coefficients import SimulatorCoefficients
from sglang.semi_pd.sm_allocation import SMAllocation

_FITTED = (
    "request_overhead_s",
    "prefill_step_s",
    "prefill_s_per_token",
    "decode_step_s",
    "decode_s_per_request",
)
_STEPS = (math.log(3.0), math.log(1.5), math.log(1.15), math.log(1.05))
_ROUNDS = 3
_PERCENTILES = (50, 90)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Predicted and measured latency at one percentile, milliseconds."""

    name: str
    predicted_ms: float
    measured_ms: float

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted_ms / self.measured_ms - 1


def compare(
    run: MeasuredRun, coefficients: SimulatorCoefficients, split: SMAllocation
) -> list[Comparison]:
    """Return TTFT and TPOT, P50 and P90, as predicted for a run and as measured."""
    ttft_ms, tpot_ms = _play(run, coefficients, split)
    pairs = (("TTFT", ttft_ms, run.ttft_ms), ("TPOT", tpot_ms, run.tpot_ms))
    return [
        Comparison(
            f"{name} P{percentile}",
            float(np.nanpercentile(predicted, percentile)),
            float(np.nanpercentile(measured, percentile)),
        )
        for name, predicted, measured in pairs
        for percentile in _PERCENTILES
    ]


def calibrate(
    run: MeasuredRun, base: SimulatorCoefficients, split: SMAllocation
) -> SimulatorCoefficients:
    """Return ``base`` with the step times that reproduce a run under ``split``.

    Also fits how much the workers slow each other under that split. The other splits'
    lines stay as in ``base``, relative to alone on the whole GPU.
    """
    start = base.factors(split)
    beside = (start.prefill_beside_decode, start.decode_beside_prefill)
    values = [max(getattr(base, name), 1e-9) for name in _FITTED] + list(beside)

    def candidate(point: list[float]) -> SimulatorCoefficients:
        overhead_s, step_s, token_s, decode_s, request_s, *slower = point
        here = (split.prefill_percentage, split.decode_percentage)
        others = [one for one in base.interference if one[:2] != here]
        return replace(
            base,
            request_overhead_s=overhead_s,
            prefill_step_s=step_s,
            prefill_s_per_token=token_s,
            decode_step_s=decode_s,
            decode_s_per_request=request_s,
            interference=(*others, (*here, slower[0], slower[1])),
        )

    def loss(point: list[float]) -> float:
        return _loss(run, candidate(point), split)

    return candidate(_search(loss, _scaled(run, base, split, values)))


def _scaled(
    run: MeasuredRun,
    base: SimulatorCoefficients,
    split: SMAllocation,
    values: list[float],
) -> list[float]:
    """Bring the start near: another GPU may be a hundred times slower."""
    ttft_ms, tpot_ms = run.ttft_ms, run.tpot_ms
    alone = base.factors(split)
    per_token_s = 1e-3 * float(np.min(ttft_ms / run.trace.input_length))
    prefill = per_token_s / (base.prefill_s_per_token * alone.prefill_alone)
    step_s = 1e-3 * float(np.nanpercentile(tpot_ms, 5))
    decode = step_s / (base.decode_step_s * alone.decode_alone)
    factors = [prefill, prefill, prefill, decode, decode, 1.0, 1.0]
    return [value * max(f, 1e-6) for value, f in zip(values, factors, strict=True)]


def _search(loss: Callable[[list[float]], float], point: list[float]) -> list[float]:
    """Try each coefficient up and down, in steps that become smaller."""
    best = loss(point)
    for step in _STEPS:
        for _ in range(_ROUNDS):
            before = best
            for place in range(len(point)):
                for factor in (math.exp(step), math.exp(-step)):
                    trial = [*point]
                    trial[place] *= factor
                    value = loss(trial)
                    if value < best:
                        best, point = value, trial
                        break
            if best == before:
                break
    return point


def _loss(
    run: MeasuredRun, coefficients: SimulatorCoefficients, split: SMAllocation
) -> float:
    """How far the simulated requests are from the measured ones."""
    total = 0.0
    played = _play(run, coefficients, split)
    for ours, theirs in zip(played, (run.ttft_ms, run.tpot_ms), strict=True):
        both = np.isfinite(ours) & np.isfinite(theirs)
        each = np.abs(np.log(ours[both] / theirs[both]))
        total += float(np.minimum(each, 2.0).mean())
        for percentile in _PERCENTILES:
            ratio = np.percentile(ours[both], percentile) / np.percentile(
                theirs[both], percentile
            )
            total += float(abs(np.log(ratio)))
    return total


def _play(
    run: MeasuredRun, coefficients: SimulatorCoefficients, split: SMAllocation
) -> tuple[np.ndarray, np.ndarray]:
    """Return each request's TTFT and TPOT in the simulator, milliseconds."""
    instance = InstanceSimulator(run.trace, coefficients, split)
    instance.advance()
    steps = run.trace.output_length - 1
    decode_s = instance.completion_s - instance.first_token_s
    tpot_s = np.full(len(steps), np.nan)
    np.divide(decode_s, steps, out=tpot_s, where=steps > 0)
    ttft_s = instance.first_token_s - run.trace.arrival_s
    return 1e3 * (ttft_s + coefficients.request_overhead_s), 1e3 * tpot_s
