# SPDX-License-Identifier: Apache-2.0
"""All that one decision depends on, and the figures derived from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sglang.semi_pd.control.latency_model import LatencyModel, queue_aware_ttft_ms
from sglang.semi_pd.slo_types import (
    ControlLimits,
    ControlState,
    MetricsSnapshot,
    SLOConstraints,
)
from sglang.semi_pd.sm_allocation import SMAllocation
from sglang.semi_pd.utils import InstanceRole

PREFILL, DECODE = InstanceRole.PREFILL, InstanceRole.DECODE


@dataclass(frozen=True, slots=True)
class DecisionInputs:
    """Everything one decision depends on; one decision line records all of it."""

    snapshot: MetricsSnapshot
    current: SMAllocation
    constraints: SLOConstraints
    model: LatencyModel
    limits: ControlLimits
    state: ControlState

    @property
    def failing(self) -> tuple[InstanceRole, ...]:
        """The roles whose SLO fails in this window."""
        return tuple(role for role in (PREFILL, DECODE) if self.excess(role) > 1)

    def target_ms(self, role: InstanceRole) -> float:
        """Return the SLO that the role's share decides, milliseconds."""
        constraints = self.constraints
        is_prefill = role is PREFILL
        return constraints.ttft_target_ms if is_prefill else constraints.tpot_target_ms

    def observed_ms(self, role: InstanceRole) -> float:
        """Return the latency seen at the SLO's percentile, milliseconds."""
        latency = self.snapshot.ttft if role is PREFILL else self.snapshot.tpot
        return latency.at(self.constraints.percentile)

    def estimate_ms(self, role: InstanceRole, allocation: SMAllocation) -> float:
        """Return Eq. 4's latency of the role under a split, milliseconds."""
        if role is DECODE:
            return self.model.tpot_ms(allocation.decode_share)
        tokens_per_s = self.snapshot.prompt_tokens_per_s
        return self.model.ttft_ms(allocation.prefill_share, tokens_per_s)

    def expected_ms(self, role: InstanceRole, allocation: SMAllocation) -> float:
        """Return what the role's latency would become under a split, milliseconds.

        Eq. 4 gives the ratio to the present split, the window gives the level: TPOT
        also depends on the batch, which Eq. 4 does not know.
        """
        present_ms = self.estimate_ms(role, self.current)
        estimate_ms = self.estimate_ms(role, allocation)
        if present_ms == math.inf:
            return estimate_ms
        return self.observed_ms(role) * estimate_ms / present_ms

    def excess(self, role: InstanceRole) -> float:
        """Return latency over target: above 1 the SLO fails.

        For TTFT this includes what a trusted model expects for a prompt that arrives
        now, behind the queue: a backlog is acted on before its latencies are observed.
        """
        latency_ms = self.observed_ms(role)
        if role is PREFILL and self.model.is_trusted:
            queued_ms = queue_aware_ttft_ms(
                self.model,
                prefill_share=self.current.prefill_share,
                queue_length=self.snapshot.prefill_queue_length,
                mean_prompt_tokens=self.snapshot.mean_input_length,
            )
            latency_ms = max(latency_ms, queued_ms)
        return latency_ms / self.target_ms(role)
