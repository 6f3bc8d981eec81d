# SPDX-License-Identifier: Apache-2.0
"""What each offered split would make of the load that is there, from measured speeds.

Eq. 4 of the paper takes both workers to be busy and shares to be speeds. Where speeds
were measured per split, more can be said. Prefill's duty u is the part of the time in
which it has prompts; decode is slowed during that part only:

    time per token = now * (u / beside + (1 - u) / alone), relative to the present split

and a prompt that arrives waits for the tokens before it, at the speed of the split:

    TTFT = tokens ahead * seconds per token + own prompt and steady queue

The level of both comes from what is observed, the speeds give only ratios: neither the
model nor its batch need be known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sglang.semi_pd.control.decision_inputs import DECODE, PREFILL, DecisionInputs
from sglang.semi_pd.control.split_offer import SplitOffer, WorkerSpeeds
from sglang.semi_pd.sm_allocation import SMAllocation

# A steady queue is not estimated closer than this to saturation, where it diverges.
_HIGHEST_LOAD = 0.97


@dataclass(frozen=True, slots=True)
class Outlook:
    """Predicted latencies of one split, milliseconds."""

    allocation: SMAllocation
    ttft_ms: float
    tpot_ms: float
    excess: float
    """The worse of the two latencies over its target; at most 1 where both are met."""


def can_judge(inputs: DecisionInputs) -> bool:
    """Whether the split in force has measured speeds and the window has their level."""
    snapshot = inputs.snapshot
    here = inputs.limits.offer_of(inputs.current)
    if here is None or here.speeds is None or snapshot.prefill_s_per_token == 0:
        return False
    figures = (
        snapshot.prefill_s_per_token,
        snapshot.prefill_duty,
        snapshot.mean_input_length,
        snapshot.arrival_rate,
        snapshot.taken_at_s,
        _pace_ms(inputs),
    )
    return all(math.isfinite(figure) and figure >= 0 for figure in figures)


def outlooks(inputs: DecisionInputs) -> list[Outlook]:
    """Return the outlook of every offer with speeds; the split in force comes first."""
    offers = [offer for offer in inputs.limits.offers if offer.speeds is not None]
    offers.sort(key=lambda offer: offer.allocation != inputs.current)
    here = offers[0].speeds
    assert here is not None and can_judge(inputs)
    return [_outlook(inputs, here, offer) for offer in offers]


def plain_outlook(inputs: DecisionInputs) -> Outlook:
    """Return what one process that takes turns would reach: prompts go first.

    Each worker then has the whole GPU in its turn, and decode waits out prefill's.
    """
    here = inputs.limits.offer_of(inputs.current)
    assert here is not None and here.speeds is not None
    s_per_token = inputs.snapshot.prefill_s_per_token * here.speeds.prefill_beside
    load = min(_HIGHEST_LOAD, inputs.snapshot.prompt_tokens_per_s * s_per_token)
    ttft_ms = _ttft_ms(inputs, s_per_token)
    present = _slowdown(here.speeds, inputs.snapshot.prefill_duty)
    tpot_ms = _pace_ms(inputs) / present / (1 - load)
    return Outlook(inputs.current, ttft_ms, tpot_ms, _excess(inputs, ttft_ms, tpot_ms))


def _outlook(inputs: DecisionInputs, here: WorkerSpeeds, offer: SplitOffer) -> Outlook:
    there = offer.speeds
    assert there is not None
    s_per_token = inputs.snapshot.prefill_s_per_token
    s_per_token *= here.prefill_beside / there.prefill_beside
    ttft_ms = _ttft_ms(inputs, s_per_token)
    tpot_ms = _tpot_ms(inputs, here, there, s_per_token)
    excess = _excess(inputs, ttft_ms, tpot_ms)
    return Outlook(offer.allocation, ttft_ms, tpot_ms, excess)


def _excess(inputs: DecisionInputs, ttft_ms: float, tpot_ms: float) -> float:
    return max(ttft_ms / inputs.target_ms(PREFILL), tpot_ms / inputs.target_ms(DECODE))


def _ttft_ms(inputs: DecisionInputs, s_per_token: float) -> float:
    """Average over the horizon of what a prompt waits, at the SLO's percentile."""
    snapshot, horizon_s = inputs.snapshot, inputs.limits.horizon_s
    waiting = max(0.0, snapshot.waiting_prompt_tokens - snapshot.mean_input_length)
    grows_by = (snapshot.prompt_tokens_per_s - 1 / s_per_token) * horizon_s
    ahead = (waiting + max(0.0, waiting + grows_by)) / 2
    return 1e3 * ahead * s_per_token + _steady_ttft_ms(inputs, s_per_token)


def _steady_ttft_ms(inputs: DecisionInputs, s_per_token: float) -> float:
    """A prompt's own time and its wait in a settled queue (M/D/1's tail)."""
    snapshot = inputs.snapshot
    load = min(_HIGHEST_LOAD, snapshot.prompt_tokens_per_s * s_per_token)
    tail = -0.5 * math.log(1 - inputs.constraints.percentile / 100)
    own_ms = 1e3 * snapshot.mean_input_length * s_per_token
    return own_ms * (1 + tail * load / (1 - load))


def _tpot_ms(
    inputs: DecisionInputs, here: WorkerSpeeds, there: WorkerSpeeds, s_per_token: float
) -> float:
    """The present time per token under another duty and at other speeds."""
    snapshot, horizon_s = inputs.snapshot, inputs.limits.horizon_s
    tokens = snapshot.waiting_prompt_tokens + snapshot.prompt_tokens_per_s * horizon_s
    duty = min(1.0, tokens * s_per_token / horizon_s)
    present = _slowdown(here, snapshot.prefill_duty)
    return _pace_ms(inputs) * _slowdown(there, duty) / present


def _pace_ms(inputs: DecisionInputs) -> float:
    """Decode's present time per token, milliseconds; 0 where nothing decodes."""
    snapshot = inputs.snapshot
    pace = snapshot.running_tpot if snapshot.running_tpot.count else snapshot.tpot
    return pace.at(inputs.constraints.percentile) if pace.count else 0.0


def _slowdown(speeds: WorkerSpeeds, duty: float) -> float:
    return duty / speeds.decode_beside + (1 - duty) / speeds.decode_alone
