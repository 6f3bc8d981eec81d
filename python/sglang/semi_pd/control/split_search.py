# SPDX-License-Identifier: Apache-2.0
"""Where a split may go from here: the inner loops of Algorithm 1 and their bounds."""

from __future__ import annotations

from sglang.semi_pd.control.decision_inputs import DECODE, PREFILL, DecisionInputs
from sglang.semi_pd.slo_types import ControlLimits, Reason
from sglang.semi_pd.sm_allocation import FULL_PERCENTAGE, SMAllocation
from sglang.semi_pd.utils import InstanceRole


def step_until_estimate_meets(
    inputs: DecisionInputs, role: InstanceRole
) -> tuple[SMAllocation, Reason]:
    """Step towards ``role`` until Eq. 4 promises its SLO; also say what stopped it.

    Takes at least one step, for the model may be wrong and the failure is observed.
    But the other role only gives what it can spare: nothing while its own SLO is met
    by less than the headroom, and nothing that is expected to break it.
    This keeps SLOs that no split can meet from swinging the split to and fro.
    """
    limits = inputs.limits
    other = DECODE if role is PREFILL else PREFILL
    wanted_ms = inputs.target_ms(role) * (1 - limits.headroom)
    spare_ms = inputs.target_ms(other) * (1 - limits.headroom)
    lacks_slack = inputs.observed_ms(other) > spare_ms
    allocation = within_bounds(inputs.current, limits)
    for taken in range(limits.max_step):
        if taken and inputs.expected_ms(role, allocation) <= wanted_ms:
            break
        candidate = increased(allocation, role, limits)
        if candidate == allocation:
            return allocation, Reason.AT_BOUND
        if candidate.share_of(other) < allocation.share_of(other):
            would_fail = inputs.expected_ms(other, candidate) > inputs.target_ms(other)
            if lacks_slack or would_fail:
                return allocation, Reason.OTHER_SLO_WOULD_FAIL
        allocation = candidate
    return allocation, Reason.AT_BOUND


def increased(
    allocation: SMAllocation, role: InstanceRole, limits: ControlLimits
) -> SMAllocation:
    """One ``increase_x_ratio`` of Algorithm 1, for either role.

    "Given that x, y <= 100, the increase in one ratio can be replaced by the reduction
    in the other if the increase leads to overflow": what the role's cap cannot take is
    taken from the other worker, and so is what would overlap where that is not allowed.
    """
    if limits.offers:
        return _next_offer(allocation, role, limits)
    other_role = DECODE if role is PREFILL else PREFILL
    own = allocation.percentage_of(role)
    other = allocation.percentage_of(other_role)
    grown = min(own + limits.step_size, limits.max_percentage)
    reduced = other
    if limits.allow_overlap:
        reduced = other - (limits.step_size - (grown - own))
    else:
        reduced = min(other, FULL_PERCENTAGE - grown)
    reduced = max(reduced, min(other, limits.min_percentage))
    if role is PREFILL:
        return SMAllocation(grown, reduced)
    return SMAllocation(reduced, grown)


def _next_offer(
    allocation: SMAllocation, role: InstanceRole, limits: ControlLimits
) -> SMAllocation:
    """Return the offer with the next larger share for a role; unchanged at the end."""
    share = allocation.share_of(role)
    larger = [split for split in _divided(limits) if split.share_of(role) > share]
    return min(larger, key=lambda split: split.share_of(role), default=allocation)


def _divided(limits: ControlLimits) -> list[SMAllocation]:
    """The offers that do divide the GPU; only AUTO may choose the one that does not."""
    splits = [offer.allocation for offer in limits.offers]
    return [split for split in splits if not split.is_unpartitioned]


def within_bounds(allocation: SMAllocation, limits: ControlLimits) -> SMAllocation:
    """Return the nearest split that the limits allow."""
    if limits.offers:
        return min(_divided(limits), key=allocation.distance_to, default=allocation)
    clamped = allocation.clamped(limits.min_percentage, limits.max_percentage)
    if limits.allow_overlap or not clamped.is_overlapping:
        return clamped
    prefill = round(FULL_PERCENTAGE * clamped.prefill_share)
    split = SMAllocation(prefill, FULL_PERCENTAGE - prefill)
    return split.clamped(limits.min_percentage, limits.max_percentage)


def filled_up(allocation: SMAllocation, limits: ControlLimits) -> SMAllocation:
    """Return the split with SMs that no worker uses handed out in proportion."""
    total = allocation.prefill_percentage + allocation.decode_percentage
    if limits.offers:
        return within_bounds(allocation, limits)
    if total >= FULL_PERCENTAGE:
        return allocation
    prefill = round(FULL_PERCENTAGE * allocation.prefill_percentage / total)
    return within_bounds(SMAllocation(prefill, FULL_PERCENTAGE - prefill), limits)


def best_split(inputs: DecisionInputs) -> tuple[SMAllocation, float]:
    """Return the allowed split with the least predicted latency over target, and it.

    The measure is the worse of TTFT and TPOT, each over its own target: at most 1
    means that Eq. 4 expects both SLOs to be met.
    """
    limits = inputs.limits
    shares = range(limits.min_percentage, limits.max_percentage + 1, limits.step_size)

    def worse_excess(split: SMAllocation) -> float:
        return max(
            inputs.estimate_ms(role, split) / inputs.target_ms(role)
            for role in (PREFILL, DECODE)
        )

    if limits.offers:
        splits = _divided(limits)
    elif limits.allow_overlap:
        splits = [SMAllocation(x, y) for x in shares for y in shares]
    else:
        highest = limits.max_percentage
        splits = [SMAllocation(x, min(highest, FULL_PERCENTAGE - x)) for x in shares]
    best = min(splits, key=worse_excess, default=inputs.current)
    return best, worse_excess(best)
