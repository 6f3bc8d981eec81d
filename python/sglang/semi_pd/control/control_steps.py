# SPDX-License-Identifier: Apache-2.0
"""What every policy of the controller does: keep or change a split, and remember it."""

from __future__ import annotations

from dataclasses import replace

from sglang.semi_pd.control.decision_inputs import DECODE, PREFILL, DecisionInputs
from sglang.semi_pd.slo_types import ControlState, Decision, Reason
from sglang.semi_pd.sm_allocation import SMAllocation
from sglang.semi_pd.utils import InstanceRole

_FAVOURED = {Reason.TTFT_FAILS: PREFILL, Reason.TPOT_FAILS: DECODE}


def remember_failing(
    state: ControlState, failing: tuple[InstanceRole, ...]
) -> ControlState:
    """Count windows in a row in which one role alone fails, and the hopeless ones.

    Hopeless are windows in which both fail, or one that no step can help; a window in
    which both SLOs are met ends the count.
    """
    role = failing[0] if len(failing) == 1 else None
    is_same = role is not None and role is state.failing
    windows = state.failing_windows + 1 if is_same else int(role is not None)
    hopeless = state.hopeless_windows + (len(failing) == 2) if failing else 0
    return replace(
        state, failing=role, failing_windows=windows, hopeless_windows=hopeless
    )


def is_cooling_down(inputs: DecisionInputs, least_s: float) -> bool:
    """Whether the last change is less than ``least_s`` ago."""
    last_change_s = inputs.state.last_change_s
    if last_change_s is None:
        return False
    return inputs.snapshot.taken_at_s - last_change_s < least_s


def keep(inputs: DecisionInputs, reason: Reason, advice: str = "") -> Decision:
    """Return the decision to keep the split."""
    return _decision(inputs, inputs.current, reason, advice)


def change(
    inputs: DecisionInputs, allocation: SMAllocation, reason: Reason, advice: str = ""
) -> Decision:
    """Return the change and forget the failures that led to it."""
    state = replace(
        inputs.state,
        last_change_s=inputs.snapshot.taken_at_s,
        favoured=_FAVOURED.get(reason, inputs.state.favoured),
        failing=None,
        failing_windows=0,
        hopeless_windows=0,
    )
    return _decision(replace(inputs, state=state), allocation, reason, advice)


def _decision(
    inputs: DecisionInputs, allocation: SMAllocation, reason: Reason, advice: str
) -> Decision:
    return Decision(
        allocation=allocation,
        reason=reason,
        state=inputs.state,
        failing=inputs.failing,
        ttft_estimate_ms=inputs.estimate_ms(PREFILL, allocation),
        tpot_estimate_ms=inputs.estimate_ms(DECODE, allocation),
        advice=advice,
    )
