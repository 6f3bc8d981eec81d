# SPDX-License-Identifier: Apache-2.0
"""The values that the SLO controller's decision is made from and made into.

All are frozen: one decision is a function of them alone, so a decision line that
records them can be replayed (``replay.py``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

from sglang.semi_pd.control.split_offer import SplitOffer
from sglang.semi_pd.sm_allocation import (
    FULL_PERCENTAGE,
    LEAST_PERCENTAGE,
    SMAllocation,
)
from sglang.semi_pd.utils import InstanceRole

PERCENTILES = (50, 90, 95, 99)


class SLOClass(str, Enum):
    """Whether a request's latency counts: batch requests only count as load."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


class ControlMode(str, Enum):
    """What the controller may do with its decision.

    ``ADVISE`` only reports it, ``FOLLOW`` applies Algorithm 1, ``AUTO`` may also give
    up splitting and fall back to (100, 100).
    """

    ADVISE = "advise"
    FOLLOW = "follow"
    AUTO = "auto"


class Reason(str, Enum):
    """Why a decision is what it is. The first group keeps the split."""

    TOO_FEW_SAMPLES = "too_few_samples"
    NOT_A_NUMBER = "not_a_number"
    SLO_MET = "slo_met"
    COOLING_DOWN = "cooling_down"
    AWAITING_CONFIRMATION = "awaiting_confirmation"
    BOTH_FAIL = "both_fail"
    AT_BOUND = "at_bound"
    OTHER_SLO_WOULD_FAIL = "other_slo_would_fail"
    STAYS_UNPARTITIONED = "stays_unpartitioned"

    TTFT_FAILS = "ttft_fails"
    TPOT_FAILS = "tpot_fails"
    UNUSED_SHARE = "unused_share"
    LIGHT_LOAD = "light_load"
    SPLIT_DOES_NOT_PAY = "split_does_not_pay"
    SPLIT_PAYS_AGAIN = "split_pays_again"
    LESS_OF_BOTH_FAILS = "less_of_both_fails"


def _invalid(field_name: str, value: object, wanted: str) -> ValueError:
    return ValueError(f"{field_name} must be {wanted}, not {value!r}")


@dataclass(frozen=True, slots=True)
class SLOConstraints:
    """What the operator promises.

    Args:
        ttft_target_ms: time to first token, milliseconds (the paper's Sp).
        tpot_target_ms: time per output token, milliseconds (the paper's Sd).
        percentile: the share of requests that must meet both (pSLO), one of 50, 90,
            95 and 99.
    """

    ttft_target_ms: float
    tpot_target_ms: float
    percentile: int = 95

    def __post_init__(self) -> None:
        for name in ("ttft_target_ms", "tpot_target_ms"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise _invalid(name, value, "positive and finite")
        if self.percentile not in PERCENTILES:
            raise _invalid("percentile", self.percentile, f"one of {PERCENTILES}")


@dataclass(frozen=True, slots=True)
class LatencySummary:
    """Percentiles of one latency over a window, milliseconds; NaN when empty."""

    count: int = 0
    p50_ms: float = math.nan
    p90_ms: float = math.nan
    p95_ms: float = math.nan
    p99_ms: float = math.nan

    def at(self, percentile: int) -> float:
        """Return one of the four percentiles, milliseconds."""
        values = (self.p50_ms, self.p90_ms, self.p95_ms, self.p99_ms)
        return values[PERCENTILES.index(percentile)]


@dataclass(frozen=True, slots=True)
class MetricsSnapshot:
    """One window of observations, as the controller sees it.

    Rates are per second over the window; lengths are tokens; ``taken_at_s`` is on the
    collector's clock. The controller has no other notion of time.

    The last four look at what is under way, so they show a change of load before a
    latency does. ``waiting_prompt_tokens``: prompts that have no first token yet.
    ``prefill_duty``: the part of the time, 0 to 1, in which there were such prompts.
    ``prefill_s_per_token``: that time over the prompt tokens that left the queue,
    seconds. ``running_tpot``: time per token of the requests that decode, each since
    the last look.
    """

    taken_at_s: float
    window_s: float
    ttft: LatencySummary = field(default_factory=LatencySummary)
    tpot: LatencySummary = field(default_factory=LatencySummary)
    arrival_rate: float = 0.0
    first_token_rate: float = 0.0
    request_throughput: float = 0.0
    token_throughput: float = 0.0
    mean_input_length: float = 0.0
    mean_output_length: float = 0.0
    prefill_queue_length: int = 0
    decode_queue_length: int = 0
    waiting_prompt_tokens: int = 0
    prefill_duty: float = math.nan
    prefill_s_per_token: float = math.nan
    running_tpot: LatencySummary = field(default_factory=LatencySummary)

    @property
    def prompt_tokens_per_s(self) -> float:
        """Offered prefill work: arrivals times their mean prompt, tokens per second."""
        return self.arrival_rate * self.mean_input_length

    @property
    def prefill_keeps_up(self) -> bool:
        """Whether prompts leave the queue about as fast as they come.

        Where they do not, latency measures how long the overload has lasted, which
        Eq. 2 does not describe.
        """
        return self.first_token_rate >= 0.9 * self.arrival_rate


_COUNTS = (
    "step_size",
    "max_step",
    "min_samples",
    "confirm_windows",
    "reversal_windows",
    "patience_windows",
)


@dataclass(frozen=True, slots=True)
class ControlLimits:
    """How far, how often and on what evidence the controller may act.

    Args:
        mode: see ``ControlMode``.
        allow_overlap: whether x + y may exceed 100.
        min_percentage: no worker gets less than this, percent.
        max_percentage: no worker gets more than this, percent.
        step_size: the paper's step_size, percent.
        max_step: the paper's max_step: most steps in one decision.
        cooldown_s: least time between two changes, seconds.
        min_samples: fewest latencies of each kind that count as a window.
        headroom: the split is sought where the estimate is this fraction below target.
        decisive_excess: latency over target from which one window is proof enough.
        confirm_windows: failing windows in a row that prove a smaller excess.
        reversal_windows: the same, for a move against the previous one.
        patience_windows: hopeless windows in a row before AUTO gives up splitting.
        light_load: prefill utilisation under which AUTO leaves the GPU undivided.
        unpartitioned_dwell_s: least stay at (100, 100), seconds.
        horizon_s: how far ahead an offer with measured speeds is judged, seconds.
        least_gain: part of the worse excess that such a move must promise to save.
        window_s: how far back a decision looks at most, seconds.
        offers: the only splits that can be had; empty where any can.
    """

    mode: ControlMode = ControlMode.FOLLOW
    allow_overlap: bool = False
    min_percentage: int = LEAST_PERCENTAGE
    max_percentage: int = 90
    step_size: int = 5
    max_step: int = 6
    cooldown_s: float = 15.0
    min_samples: int = 10
    headroom: float = 0.1
    decisive_excess: float = 1.5
    confirm_windows: int = 2
    reversal_windows: int = 3
    patience_windows: int = 3
    light_load: float = 0.02
    unpartitioned_dwell_s: float = 60.0
    horizon_s: float = 4.0
    least_gain: float = 0.15
    window_s: float = 1e9
    offers: tuple[SplitOffer, ...] = ()

    def __post_init__(self) -> None:
        low, high = self.min_percentage, self.max_percentage
        half = FULL_PERCENTAGE // 2
        if not LEAST_PERCENTAGE <= low <= half:
            wanted = f"between {LEAST_PERCENTAGE} and {half}"
            raise _invalid("min_percentage", low, wanted)
        highest = FULL_PERCENTAGE if self.allow_overlap else FULL_PERCENTAGE - low
        if not low <= high <= highest:
            raise _invalid("max_percentage", high, f"between {low} and {highest}")
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise _invalid(name, getattr(self, name), "at least 1")
        for name in ("cooldown_s", "light_load", "unpartitioned_dwell_s"):
            if not getattr(self, name) >= 0:
                raise _invalid(name, getattr(self, name), "0 or more")
        if not 0 <= self.headroom < 1:
            raise _invalid("headroom", self.headroom, "in [0, 1)")
        if not self.decisive_excess >= 1:
            raise _invalid("decisive_excess", self.decisive_excess, "at least 1")

    @property
    def is_advice_only(self) -> bool:
        """Whether decisions are reported and never applied."""
        return self.mode is ControlMode.ADVISE

    def offer_of(self, allocation: SMAllocation) -> SplitOffer | None:
        """Return the offer of a split, or None if it is not offered."""
        return next((o for o in self.offers if o.allocation == allocation), None)


@dataclass(frozen=True, slots=True)
class ControlState:
    """What the controller remembers from one decision to the next.

    ``favoured`` is the role that the last change gave SMs to. ``failing`` is the role
    whose SLO has failed in the last ``failing_windows`` windows. ``last_split`` is the
    split that was in force before (100, 100).
    """

    last_change_s: float | None = None
    favoured: InstanceRole | None = None
    failing: InstanceRole | None = None
    failing_windows: int = 0
    hopeless_windows: int = 0
    last_split: SMAllocation | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The split to use next, why, and the memory to decide with next time.

    Estimates are for ``allocation``, milliseconds; ``advice`` is a sentence for people.
    """

    allocation: SMAllocation
    reason: Reason
    state: ControlState
    failing: tuple[InstanceRole, ...] = ()
    ttft_estimate_ms: float = math.nan
    tpot_estimate_ms: float = math.nan
    advice: str = ""
