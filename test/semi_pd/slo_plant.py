# SPDX-License-Identifier: Apache-2.0
"""A toy plant that obeys Eq. 4, for the controller to steer in tests."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from sglang.semi_pd.control.latency_model import LatencyModel, LatencyModelFitter
from sglang.semi_pd.control.slo_policy import decide
from sglang.semi_pd.slo_types import (
    ControlLimits,
    ControlState,
    Decision,
    LatencySummary,
    MetricsSnapshot,
    SLOConstraints,
)
from sglang.semi_pd.sm_allocation import SMAllocation

WINDOW_S = 30.0


def summary(latency_ms: float, count: int = 100) -> LatencySummary:
    """Return a window in which every percentile is the same latency."""
    return LatencySummary(count, *[latency_ms] * 4)


def snapshot_of(
    ttft_ms: float, tpot_ms: float, *, at_s: float = 0.0, count: int = 100
) -> MetricsSnapshot:
    """Return a window of 10 requests per second of 500 prompt tokens."""
    return MetricsSnapshot(
        taken_at_s=at_s,
        window_s=WINDOW_S,
        ttft=summary(ttft_ms, count),
        tpot=summary(tpot_ms, count),
        arrival_rate=10.0,
        first_token_rate=10.0,
        mean_input_length=500.0,
        mean_output_length=200.0,
    )


@dataclass
class Plant:
    """Serves 10 requests per second by Eq. 4, with noise, and runs the policy on it.

    An overloaded prefill worker, for which Eq. 4 is undefined, shows a TTFT as long as
    the window.
    """

    constraints: SLOConstraints
    allocation: SMAllocation
    limits: ControlLimits = field(default_factory=ControlLimits)
    truth: LatencyModel = LatencyModel(60.0, 15.0, 4e-5, 8.0, 4.0)
    noise: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)
        self._fitter = LatencyModelFitter()
        self._state = ControlState()
        self._now_s = 0.0
        self.splits = [self.allocation]
        self.decisions: list[Decision] = []

    def latencies_ms(self, allocation: SMAllocation) -> tuple[float, float]:
        """Return the true TTFT and TPOT under a split."""
        ttft_ms = self.truth.ttft_ms(allocation.prefill_share, 5000.0)
        ttft_ms = ttft_ms if math.isfinite(ttft_ms) else 1e3 * WINDOW_S
        return ttft_ms, self.truth.tpot_ms(allocation.decode_share)

    def is_feasible(self, allocation: SMAllocation) -> bool:
        """Whether the split truly meets both SLOs."""
        ttft_ms, tpot_ms = self.latencies_ms(allocation)
        targets = self.constraints
        return ttft_ms <= targets.ttft_target_ms and tpot_ms <= targets.tpot_target_ms

    def run(self, windows: int) -> None:
        """Observe, learn, decide and apply, once per window."""
        for _ in range(windows):
            self._now_s += WINDOW_S
            ttft_ms, tpot_ms = (
                latency_ms * max(0.1, 1 + self.noise * self._random.normal())
                for latency_ms in self.latencies_ms(self.allocation)
            )
            snapshot = snapshot_of(ttft_ms, tpot_ms, at_s=self._now_s)
            percentile = self.constraints.percentile
            model = self._fitter.observe(
                snapshot, self.allocation, percentile=percentile
            )
            decision = decide(
                snapshot,
                self.allocation,
                constraints=self.constraints,
                model=model,
                limits=self.limits,
                state=self._state,
            )
            self._state, self.allocation = decision.state, decision.allocation
            self.splits.append(self.allocation)
            self.decisions.append(decision)

    def windows_until_feasible(self) -> int:
        """Return how many windows passed before the split first met both SLOs."""
        return next(
            window
            for window, split in enumerate(self.splits)
            if self.is_feasible(split)
        )

    def reversals(self, since: int = 0) -> int:
        """Return how often the prefill share turned round after ``since`` windows."""
        shares = [split.prefill_share for split in self.splits[since:]]
        moves = np.sign(np.diff(shares))
        moves = moves[moves != 0]
        return int(np.count_nonzero(np.diff(moves)))
