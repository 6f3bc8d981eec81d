# SPDX-License-Identifier: Apache-2.0
"""The decision where the speeds of the offered splits are measured.

Same contract as ``slo_policy.decide_from``, which calls it. Algorithm 1 steps from
split to split since it only knows directions. With measured speeds every offer's
latencies can be compared at once, so one move goes to the best of them.
"""

from __future__ import annotations

from dataclasses import replace

from sglang.semi_pd.control.control_steps import (
    change,
    is_cooling_down,
    keep,
    remember_failing,
)
from sglang.semi_pd.control.decision_inputs import DECODE, PREFILL, DecisionInputs
from sglang.semi_pd.control.split_outlook import Outlook, outlooks, plain_outlook
from sglang.semi_pd.slo_types import ControlMode, Decision, Reason
from sglang.semi_pd.utils import InstanceRole

# Where so few requests would be inside both targets, none are counted on.
_HOPELESS = 0.05


def decide_by_outlook(inputs: DecisionInputs) -> Decision:
    """Keep the split while it meets both SLOs, else take the best offer that helps."""
    present, *others = outlooks(inputs)
    failing = _failing(inputs, present)
    inputs = replace(inputs, state=remember_failing(inputs.state, failing))
    if not failing:
        return _explained(keep(inputs, Reason.SLO_MET), present, failing)
    if is_cooling_down(inputs, inputs.limits.cooldown_s):
        return _explained(keep(inputs, Reason.COOLING_DOWN), present, failing)
    if not _is_confirmed(inputs, present):
        return _explained(keep(inputs, Reason.AWAITING_CONFIRMATION), present, failing)
    best = max([present, *_allowed(inputs, others)], key=_merit)
    if not _helps(inputs, best, present):
        hopeless = inputs.state.hopeless_windows + (len(failing) == 1)
        inputs = replace(inputs, state=replace(inputs.state, hopeless_windows=hopeless))
        kept = keep(inputs, _why_kept(failing), _advice(inputs, best))
        return _explained(kept, present, failing)
    reason = _why_changed(best, failing)
    changed = change(inputs, best.allocation, reason, _advice(inputs, best))
    return _explained(changed, best, failing)


def _merit(outlook: Outlook) -> tuple[float, float]:
    """More requests inside both targets; where none will be, the lesser excess."""
    return (outlook.share if outlook.share > _HOPELESS else 0.0, -outlook.excess)


def _helps(inputs: DecisionInputs, best: Outlook, present: Outlook) -> bool:
    """Whether a move promises more than the noise of an outlook."""
    if best.share > _HOPELESS:
        return best.share - present.share >= inputs.limits.least_gain
    return best.excess <= present.excess * (1 - inputs.limits.least_gain)


def _failing(inputs: DecisionInputs, present: Outlook) -> tuple[InstanceRole, ...]:
    latencies = {PREFILL: present.ttft_ms, DECODE: present.tpot_ms}
    return tuple(r for r, value in latencies.items() if value > inputs.target_ms(r))


def _is_confirmed(inputs: DecisionInputs, present: Outlook) -> bool:
    """Hysteresis: a large excess is proof enough, a small one must last."""
    limits = inputs.limits
    is_decisive = present.excess >= limits.decisive_excess
    return is_decisive or inputs.state.failing_windows >= limits.confirm_windows


def _allowed(inputs: DecisionInputs, offers: list[Outlook]) -> list[Outlook]:
    """Only AUTO may give up splitting, and only after no split has helped a while."""
    limits = inputs.limits
    is_hopeless = inputs.state.hopeless_windows >= limits.patience_windows
    if limits.mode is ControlMode.AUTO and is_hopeless:
        return offers
    return [offer for offer in offers if not offer.allocation.is_unpartitioned]


def _why_kept(failing: tuple[InstanceRole, ...]) -> Reason:
    return Reason.BOTH_FAIL if len(failing) == 2 else Reason.OTHER_SLO_WOULD_FAIL


def _why_changed(best: Outlook, failing: tuple[InstanceRole, ...]) -> Reason:
    if best.allocation.is_unpartitioned:
        return Reason.SPLIT_DOES_NOT_PAY
    if len(failing) == 2:
        return Reason.LESS_OF_BOTH_FAILS
    return Reason.TTFT_FAILS if failing[0] is PREFILL else Reason.TPOT_FAILS


def _advice(inputs: DecisionInputs, best: Outlook) -> str:
    """Say what would serve better where no offer meets both SLOs."""
    if best.excess <= 1:
        return ""
    figures = f"TTFT {best.ttft_ms:.0f} ms and TPOT {best.tpot_ms:.1f} ms"
    advice = f"no offered split keeps both SLOs: the best, {best.allocation}, {figures}"
    plain = plain_outlook(inputs)
    if plain.excess >= best.excess:
        return advice
    return (
        f"{advice}; plain scheduling would serve better: TTFT {plain.ttft_ms:.0f} ms "
        f"and TPOT {plain.tpot_ms:.1f} ms, with decode at rest during every chunk"
    )


def _explained(
    decision: Decision, outlook: Outlook, failing: tuple[InstanceRole, ...]
) -> Decision:
    return replace(
        decision,
        failing=failing,
        ttft_estimate_ms=outlook.ttft_ms,
        tpot_estimate_ms=outlook.tpot_ms,
    )
