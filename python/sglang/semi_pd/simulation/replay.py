# SPDX-License-Identifier: Apache-2.0
"""Run recorded decisions through a policy again and show where it differs.

Each recorded window is judged as it was met then, with the split and the memory of
that moment; what the policy would have seen after acting differently is not known from
a log (``simulation.py`` answers that).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

from sglang.semi_pd.control.decision_inputs import DECODE, PREFILL, DecisionInputs
from sglang.semi_pd.control.decision_log import decode_line
from sglang.semi_pd.control.slo_policy import decide_from
from sglang.semi_pd.control.split_search import increased
from sglang.semi_pd.errors import ConfigError
from sglang.semi_pd.slo_types import Decision, Reason
from sglang.semi_pd.sm_allocation import SMAllocation

Policy = Callable[[DecisionInputs], Decision]


@dataclass(frozen=True, slots=True)
class Difference:
    """One decision that the policy would have made otherwise."""

    line: int
    time_s: float
    current: SMAllocation
    recorded: SMAllocation
    recorded_reason: Reason
    replayed: SMAllocation
    replayed_reason: Reason


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """How a policy compares with what was decided.

    ``unreadable`` holds (line number, what is wrong) of lines that could not be used.
    """

    decisions: int
    differences: tuple[Difference, ...]
    unreadable: tuple[tuple[int, str], ...]


def replay(lines: Iterable[str], policy: Policy = decide_from) -> ReplayReport:
    """Run every decision line through ``policy``; empty lines are skipped."""
    decisions = 0
    differences: list[Difference] = []
    unreadable: list[tuple[int, str]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = decode_line(line)
        except ValueError as error:
            unreadable.append((number, str(error)))
            continue
        decisions += 1
        recorded, replayed = record.decision, policy(record.inputs)
        if replayed.allocation == recorded.allocation:
            continue
        differences.append(
            Difference(
                line=number,
                time_s=record.inputs.snapshot.taken_at_s,
                current=record.inputs.current,
                recorded=recorded.allocation,
                recorded_reason=recorded.reason,
                replayed=replayed.allocation,
                replayed_reason=replayed.reason,
            )
        )
    return ReplayReport(decisions, tuple(differences), tuple(unreadable))


def named_policy(name: str) -> Policy:
    """Return a policy by name: ``controller``, ``listing`` or ``static:X/Y``."""
    if name == "controller":
        return decide_from
    if name == "listing":
        return decide_as_listed
    kind, separator, split = name.partition(":")
    if kind == "static" and separator:
        return partial(_decide_static, SMAllocation.parse(split))
    raise ConfigError(
        f"{name!r} is not a policy",
        why="the policies are controller, listing and static:X/Y",
        mend="write for example --policy static:70/30",
    )


def with_targets(
    policy: Policy, *, ttft_target_ms: float | None, tpot_target_ms: float | None
) -> Policy:
    """Return the policy deciding under other SLOs than the recorded ones."""

    def decide_with_targets(inputs: DecisionInputs) -> Decision:
        recorded = inputs.constraints
        constraints = replace(
            recorded,
            ttft_target_ms=ttft_target_ms or recorded.ttft_target_ms,
            tpot_target_ms=tpot_target_ms or recorded.tpot_target_ms,
        )
        return policy(replace(inputs, constraints=constraints))

    return decide_with_targets


def decide_as_listed(inputs: DecisionInputs) -> Decision:
    """Algorithm 1 exactly as listed in the paper: no hysteresis, no veto, TTFT first.

    The yardstick for what ``slo_policy.decide`` adds. It keeps the bounds, since
    shares beyond them cannot be applied.
    """
    role = inputs.failing[0] if inputs.failing else None
    if role is None:
        return Decision(inputs.current, Reason.SLO_MET, inputs.state)
    allocation = inputs.current
    for _ in range(inputs.limits.max_step):
        if inputs.estimate_ms(role, allocation) <= inputs.target_ms(role):
            break
        allocation = increased(allocation, role, inputs.limits)
    reason = {PREFILL: Reason.TTFT_FAILS, DECODE: Reason.TPOT_FAILS}[role]
    return Decision(allocation, reason, inputs.state, inputs.failing)


def _decide_static(split: SMAllocation, inputs: DecisionInputs) -> Decision:
    return Decision(split, Reason.SLO_MET, inputs.state, inputs.failing)
