# SPDX-License-Identifier: Apache-2.0
"""What clients of a fleet would see, and what that answer assumes."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from sglang.semi_pd.control.sliding_window import summarise
from sglang.semi_pd.simulation.fleet import FleetSimulator
from sglang.semi_pd.simulation.fleet_types import Deployment, FleetTrace
from sglang.semi_pd.simulation.simulator_coefficients import SimulatorCoefficients
from sglang.semi_pd.slo_types import LatencySummary, SLOConstraints

ASSUMPTIONS = (
    "every GPU holds the whole model and has the same step times; nothing fails",
    "between two changes of its load a GPU decodes at one pace: no single steps, so "
    "TPOT is an average and the worst gap between two tokens is not predicted",
    "plain: prompts first, decode rests during each chunk; no mixed chunks",
    "xpyd: weights on every GPU, so KV capacity is the same; a prompt's KV cache "
    "travels once, at the stated speed, without contention on the network; the first "
    "token is sent when it has arrived",
    "KV cache for prompt and answer is set aside when a prompt starts (xpyd: for the "
    "answer when decode takes it); nothing is retracted",
    "routing knows each GPU's unfinished tokens at once and exactly",
    "a conversation's cache is whole on the GPU of its last turn, and is never evicted",
    "the split is the same on all GPUs and does not move",
)


@dataclass(frozen=True, slots=True)
class FleetReport:
    """Latencies in milliseconds, rates per second, shares from 0 to 1.

    ``prefill_busy`` is the part of all GPUs' time in which they had prompts to work on;
    ``cached_share`` the part of all prompt tokens found in a cache.
    """

    name: str
    gpus: int
    requests: int
    ttft: LatencySummary
    tpot: LatencySummary
    slo_attainment: float
    request_throughput: float
    prefill_busy: float
    cached_share: float

    def as_dict(self) -> dict[str, object]:
        """Return the report as nested plain values."""
        return asdict(self)


def simulate_fleet(
    trace: FleetTrace,
    deployment: Deployment,
    constraints: SLOConstraints,
    coefficients: SimulatorCoefficients,
) -> FleetReport:
    """Serve a trace on a fleet."""
    fleet = FleetSimulator(trace, deployment, coefficients)
    fleet.run()
    ttft_s, tpot_s = fleet.latencies_s()
    meets = 1e3 * ttft_s <= constraints.ttft_target_ms
    meets &= ~(1e3 * tpot_s > constraints.tpot_target_ms)
    ends_s = float(np.max(fleet.completion_s))
    span_s = max(ends_s - float(trace.requests.arrival_s[0]), 1e-9)
    return FleetReport(
        name=deployment.name,
        gpus=deployment.gpus,
        requests=len(trace),
        ttft=summarise(1e3 * ttft_s),
        tpot=summarise(1e3 * tpot_s[np.isfinite(tpot_s)]),
        slo_attainment=float(meets.mean()),
        request_throughput=len(trace) / span_s,
        prefill_busy=fleet.prefill_busy_s / span_s / deployment.gpus,
        cached_share=fleet.cached_tokens / int(trace.requests.input_length.sum()),
    )
