# SPDX-License-Identifier: Apache-2.0
"""The SLO-aware adjusting algorithm as a pure function.

``decide`` is Algorithm 1 of the Semi-PD paper (section 5) with what serving needs
around it. It reads no clock, starts no thread and touches no file: time is
``snapshot.taken_at_s``, memory is ``ControlState``. The same arguments always give the
same decision, which is what makes ``semi-pd replay`` possible.

Where the paper contradicts itself, its text is followed: "The algorithm directly
returns the current partition when both TTFT and TPOT fail the SLOs, as there is no
space for adjustment". The listing's lines 8 and 13 would raise prefill's share
whenever TTFT fails, also then. Only SMs that no worker uses yet are handed out here.
"""

from __future__ import annotations

import math
from dataclasses import replace

from sglang.semi_pd.control.control_steps import (
    change,
    is_cooling_down,
    keep,
    remember_failing,
)
from sglang.semi_pd.control.decision_inputs import DECODE, PREFILL, DecisionInputs
from sglang.semi_pd.control.latency_model import LatencyModel
from sglang.semi_pd.control.outlook_policy import decide_by_outlook
from sglang.semi_pd.control.split_outlook import can_judge
from sglang.semi_pd.control.split_search import (
    best_split,
    filled_up,
    step_until_estimate_meets,
)
from sglang.semi_pd.slo_types import (
    ControlLimits,
    ControlMode,
    ControlState,
    Decision,
    MetricsSnapshot,
    Reason,
    SLOConstraints,
)
from sglang.semi_pd.sm_allocation import UNPARTITIONED, SMAllocation
from sglang.semi_pd.utils import InstanceRole


def decide(  # noqa: PLR0913 - each is one recorded input
    snapshot: MetricsSnapshot,
    current: SMAllocation,
    *,
    constraints: SLOConstraints,
    model: LatencyModel,
    limits: ControlLimits,
    state: ControlState,
) -> Decision:
    """Return the split to use next and why (Algorithm 1, Eq. 4).

    A window with too few samples, or with a figure that is no number, changes nothing,
    the memory included.
    """
    inputs = DecisionInputs(snapshot, current, constraints, model, limits, state)
    return decide_from(inputs)


def decide_from(inputs: DecisionInputs) -> Decision:
    """``decide`` for recorded inputs."""
    if can_judge(inputs):
        return decide_by_outlook(inputs)
    unusable = _unusable_reason(inputs)
    if unusable is not None:
        return Decision(inputs.current, unusable, inputs.state)
    failing = inputs.failing
    inputs = replace(inputs, state=remember_failing(inputs.state, failing))
    fell_back = inputs.state.last_split is not None
    is_divisible = inputs.limits.allow_overlap and not fell_back
    if inputs.current.is_unpartitioned and not is_divisible:
        return _decide_unpartitioned(inputs)
    if inputs.limits.mode is ControlMode.AUTO:
        given_up = _give_up_splitting(inputs)
        if given_up is not None:
            return given_up
    if not failing:
        return keep(inputs, Reason.SLO_MET)
    if is_cooling_down(inputs, inputs.limits.cooldown_s):
        return keep(inputs, Reason.COOLING_DOWN)
    if len(failing) == 2:
        return _decide_both_fail(inputs)
    return _favour(inputs, failing[0])


def _unusable_reason(inputs: DecisionInputs) -> Reason | None:
    """Return why the window proves nothing, or None if it can be judged."""
    snapshot = inputs.snapshot
    if min(snapshot.ttft.count, snapshot.tpot.count) < inputs.limits.min_samples:
        return Reason.TOO_FEW_SAMPLES
    figures = (
        snapshot.taken_at_s,
        snapshot.prompt_tokens_per_s,
        snapshot.mean_input_length,
        inputs.observed_ms(PREFILL),
        inputs.observed_ms(DECODE),
    )
    if not all(math.isfinite(figure) and figure >= 0 for figure in figures):
        return Reason.NOT_A_NUMBER
    return None


def _favour(inputs: DecisionInputs, role: InstanceRole) -> Decision:
    """Move SMs to the role whose SLO alone fails (Algorithm 1, lines 8 to 17)."""
    if not _is_confirmed(inputs, role):
        return keep(inputs, Reason.AWAITING_CONFIRMATION)
    allocation, stopped_by = step_until_estimate_meets(inputs, role)
    if allocation != inputs.current:
        is_prefill = role is PREFILL
        reason = Reason.TTFT_FAILS if is_prefill else Reason.TPOT_FAILS
        return change(inputs, allocation, reason)
    hopeless = inputs.state.hopeless_windows + 1
    state = replace(inputs.state, hopeless_windows=hopeless)
    return keep(replace(inputs, state=state), stopped_by)


def _is_confirmed(inputs: DecisionInputs, role: InstanceRole) -> bool:
    """Whether the failure is proof enough to act: hysteresis against noise.

    A large observed excess is. A small or a predicted one must last, and last longer
    when acting on it would undo the previous change.
    """
    limits, state = inputs.limits, inputs.state
    observed_excess = inputs.observed_ms(role) / inputs.target_ms(role)
    if observed_excess >= limits.decisive_excess:
        return True
    is_reversal = state.favoured is not None and state.favoured is not role
    needed = limits.reversal_windows if is_reversal else limits.confirm_windows
    return state.failing_windows >= needed


def _decide_both_fail(inputs: DecisionInputs) -> Decision:
    """Hand out SMs that nobody uses, if any; otherwise there is nothing to adjust."""
    filled = filled_up(inputs.current, inputs.limits)
    if filled == inputs.current:
        return keep(inputs, Reason.BOTH_FAIL)
    return change(inputs, filled, Reason.UNUSED_SHARE)


def _give_up_splitting(inputs: DecisionInputs) -> Decision | None:
    """Return the fall-back to (100, 100) where splitting does not pay (AUTO mode)."""
    limits = inputs.limits
    if inputs.current.is_unpartitioned or is_cooling_down(inputs, limits.cooldown_s):
        return None
    load = inputs.model.prefill_load(inputs.snapshot.prompt_tokens_per_s)
    if not inputs.failing and load <= limits.light_load:
        advice = (
            f"prompts keep {load:.1%} of the GPU busy: caps would idle SMs, "
            "so none are set"
        )
        return _unpartition(inputs, Reason.LIGHT_LOAD, advice)
    if inputs.state.hopeless_windows >= limits.patience_windows:
        split, excess = best_split(inputs)
        advice = (
            f"no split keeps both SLOs (the best, {split}, is predicted at "
            f"{excess:.2f} of the worse target): none is used"
        )
        return _unpartition(inputs, Reason.SPLIT_DOES_NOT_PAY, advice)
    return None


def _unpartition(inputs: DecisionInputs, reason: Reason, advice: str) -> Decision:
    state = replace(inputs.state, last_split=inputs.current)
    return change(replace(inputs, state=state), UNPARTITIONED, reason, advice)


def _decide_unpartitioned(inputs: DecisionInputs) -> Decision:
    """Divide the GPU again once an SLO fails and a split is expected to help."""
    if not inputs.failing:
        return keep(inputs, Reason.SLO_MET)
    if is_cooling_down(inputs, inputs.limits.unpartitioned_dwell_s):
        return keep(inputs, Reason.COOLING_DOWN)
    split, excess = best_split(inputs)
    was_split = inputs.state.last_split is not None
    if was_split and excess > 1:
        advice = (
            f"the best split, {split}, is predicted at {excess:.2f} of the worse "
            "target: plain scheduling (mixed chunked prefill) would serve better"
        )
        return keep(inputs, Reason.STAYS_UNPARTITIONED, advice)
    inputs = replace(inputs, state=replace(inputs.state, last_split=None))
    return change(inputs, split, Reason.SPLIT_PAYS_AGAIN)
