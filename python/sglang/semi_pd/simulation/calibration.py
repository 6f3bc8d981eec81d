# SPDX-License-Identifier: Apache-2.0
"""Fitting the simulator to a measured run, and judging it by another one.

A run is played again, request by request, and the step times are changed until every
request's TTFT and TPOT come out as measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from sglang.semi_pd.simulation import client_view
from sglang.semi_pd.simulation.measured_run import MeasuredRun
from sglang.semi_pd.simulation.robust_fit import fit
from sglang.semi_pd.simulation.simulator import InstanceSimulator
from sglang.semi_pd.simulation.simulator_coefficients import (
    SimulatorCoefficients,
    StepFactors,
)
from sglang.semi_pd.sm_allocation import SMAllocation

_FITTED = (
    "request_overhead_s",
    "transport_s_per_stream",
    "prefill_step_s",
    "prefill_s_per_token",
    "decode_step_s",
    "decode_s_per_kv_token",
)
_TIE = 0.015
_TRANSPORT_S = 1.5e-4
_TRANSPORT_TIE = 0.1
"""Near saturation a queue that is too short can be made up by slow transport: no."""
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
    return calibrate_jointly([(run, split)], base)


def calibrate_jointly(
    runs: Sequence[tuple[MeasuredRun, SMAllocation]], base: SimulatorCoefficients
) -> SimulatorCoefficients:
    """As ``calibrate``: one set of step times, and for each split its own factors."""
    splits = list(dict.fromkeys(split for _, split in runs))
    caps = [(one.prefill_percentage, one.decode_percentage) for one in splits]
    others = [line for line in base.interference if line[:2] not in caps]
    factors = [value for one in splits for value in _beside(base.factors(one))]
    least = {"transport_s_per_stream": _TRANSPORT_S}
    values = [max(getattr(base, name), least.get(name, 1e-9)) for name in _FITTED]
    values += factors

    def candidate(point: np.ndarray) -> SimulatorCoefficients:
        found = np.exp(point).tolist()
        times = dict(zip(_FITTED, found, strict=False))
        slower = np.reshape(found[len(_FITTED) :], (len(caps), -1)).tolist()
        lines = [(*cap, *line) for cap, line in zip(caps, slower, strict=True)]
        return replace(base, **times, interference=(*others, *lines))

    def misses(point: np.ndarray) -> np.ndarray:
        tried = candidate(point)
        return np.concatenate([_misses(run, tried, split) for run, split in runs])

    starts = [values, _scaled(*runs[0], base, values)]
    ties = np.full(len(values), _TIE)
    ties[_FITTED.index("transport_s_per_stream")] = _TRANSPORT_TIE
    return candidate(fit(misses, np.log(starts), ties))


def _beside(factors: StepFactors) -> tuple[float, float, float]:
    return (
        factors.prefill_beside_decode,
        factors.decode_beside_prefill,
        factors.decode_kv_beside_prefill,
    )


def _scaled(
    run: MeasuredRun,
    split: SMAllocation,
    base: SimulatorCoefficients,
    values: list[float],
) -> list[float]:
    """Bring the start near: another GPU may be a hundred times slower."""
    ttft_ms, tpot_ms = run.ttft_ms, run.tpot_ms
    alone = base.factors(split)
    per_token_s = 1e-3 * float(np.min(ttft_ms / run.trace.input_length))
    prefill = per_token_s / (base.prefill_s_per_token * alone.prefill_alone)
    step_s = 1e-3 * float(np.nanpercentile(tpot_ms, 5))
    decode = step_s / (base.decode_step_s * alone.decode_alone)
    factors = [prefill, decode, prefill, prefill, decode, decode]
    times = [value * max(f, 1e-6) for value, f in zip(values, factors, strict=False)]
    return times + values[len(times) :]


def _misses(
    run: MeasuredRun, coefficients: SimulatorCoefficients, split: SMAllocation
) -> np.ndarray:
    """How far simulated requests are from measured ones: logarithms of ratios.

    TTFT and TPOT weigh the same however many requests there are, and both percentiles
    that a run is judged by as much as all requests together.
    """
    parts = []
    played = _play(run, coefficients, split)
    for ours, theirs in zip(played, (run.ttft_ms, run.tpot_ms), strict=True):
        known = np.isfinite(theirs)
        logs = np.log(np.maximum(ours[known], 1e-6)), np.log(theirs[known])
        parts.append((logs[0] - logs[1]) / np.sqrt(known.sum()))
        ranks = [np.percentile(one, _PERCENTILES) for one in logs]
        parts.append((ranks[0] - ranks[1]) / np.sqrt(len(_PERCENTILES)))
    return np.concatenate(parts)


def _play(
    run: MeasuredRun, coefficients: SimulatorCoefficients, split: SMAllocation
) -> tuple[np.ndarray, np.ndarray]:
    """Return each request's TTFT and TPOT in the simulator, milliseconds."""
    instance = InstanceSimulator(run.trace, coefficients, split)
    instance.advance()
    return 1e3 * client_view.ttft_s(instance), 1e3 * client_view.tpot_s(instance)
