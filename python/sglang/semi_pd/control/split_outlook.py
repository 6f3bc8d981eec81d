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
from statistics import NormalDist

from sglang.semi_pd.control.decision_inputs import DECODE, PREFILL, DecisionInputs
from sglang.semi_pd.control.split_offer import SplitOffer, WorkerSpeeds
from sglang.semi_pd.slo_types import LatencySummary
from sglang.semi_pd.sm_allocation import SMAllocation

# A steady queue is not estimated closer than this to saturation, where it diverges.
_HIGHEST_LOAD = 0.97
# The mean wait in a settled queue with even service, in prompts' own time.
_TAIL = 0.5
# Moments of the horizon at which a prompt's wait is looked at.
_MOMENTS = 8
# Standard deviation of the logarithm of TPOT between requests under one split and load.
_SPREAD = 0.05
# The same of what TPOT will be: the batch of the next seconds is not known better.
_DOUBT = 0.1


@dataclass(frozen=True, slots=True)
class Outlook:
    """Predicted latencies of one split, milliseconds."""

    allocation: SMAllocation
    ttft_ms: float
    tpot_ms: float
    excess: float
    """The worse of the two latencies over its target; at most 1 where both are met."""
    share: float = 0.0
    """Part of the requests, 0 to 1, that is expected to meet both targets."""


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
    share = _share_of_ttft(inputs, s_per_token) * _share_of_tpot(inputs, tpot_ms)
    return Outlook(offer.allocation, ttft_ms, tpot_ms, excess, share)


def _excess(inputs: DecisionInputs, ttft_ms: float, tpot_ms: float) -> float:
    return max(ttft_ms / inputs.target_ms(PREFILL), tpot_ms / inputs.target_ms(DECODE))


def _ttft_ms(inputs: DecisionInputs, s_per_token: float) -> float:
    """Average over the horizon of what a prompt waits, at the SLO's percentile."""
    first, growth = _backlog(inputs, s_per_token)
    ahead = (first + max(0.0, first + growth)) / 2
    return 1e3 * ahead * s_per_token + _steady_ttft_ms(inputs, s_per_token)


def _backlog(inputs: DecisionInputs, s_per_token: float) -> tuple[float, float]:
    """Prompt tokens before one that arrives now, and how many more in a horizon."""
    snapshot, horizon_s = inputs.snapshot, inputs.limits.horizon_s
    waiting = max(0.0, snapshot.waiting_prompt_tokens - snapshot.mean_input_length)
    return waiting, (snapshot.prompt_tokens_per_s - 1 / s_per_token) * horizon_s


def _share_of_ttft(inputs: DecisionInputs, s_per_token: float) -> float:
    """Part of the prompts of the horizon whose wait leaves TTFT inside its target."""
    own_s = inputs.snapshot.mean_input_length * s_per_token
    scale_s = max(1e-9, own_s * _settled_wait(inputs, s_per_token))
    room_s = inputs.target_ms(PREFILL) / 1e3 - own_s
    first, growth = _backlog(inputs, s_per_token)
    inside = 0.0
    for moment in range(_MOMENTS):
        ahead = max(0.0, first + growth * (moment + 0.5) / _MOMENTS)
        room = max(0.0, room_s - s_per_token * ahead)
        inside -= math.expm1(-room / scale_s)
    return inside / _MOMENTS


def _share_of_tpot(inputs: DecisionInputs, tpot_ms: float) -> float:
    """Part of the requests of the horizon whose TPOT would be inside its target.

    ``tpot_ms`` is at the SLO's percentile.
    """
    pace_ms = _pace_ms(inputs)
    middle_ms = tpot_ms * _paces(inputs).p50_ms / pace_ms if pace_ms else 0.0
    if not middle_ms:
        return 1.0
    distance = math.log(inputs.target_ms(DECODE) / middle_ms) / _DOUBT
    return 0.5 * math.erfc(-distance / math.sqrt(2))


def _steady_ttft_ms(inputs: DecisionInputs, s_per_token: float) -> float:
    """A prompt's own time and its wait in a settled queue (M/D/1's tail)."""
    tail = -math.log(1 - inputs.constraints.percentile / 100)
    own_ms = 1e3 * inputs.snapshot.mean_input_length * s_per_token
    return own_ms * (1 + tail * _settled_wait(inputs, s_per_token))


def _settled_wait(inputs: DecisionInputs, s_per_token: float) -> float:
    """Mean wait in a settled queue, in prompts' own time, as far as it settles.

    Near saturation that takes minutes. Within the horizon chance brings about the root
    of the expected arrivals more, whose tail is an exponential's with half of it.
    """
    snapshot = inputs.snapshot
    load = min(_HIGHEST_LOAD, snapshot.prompt_tokens_per_s * s_per_token)
    by_chance = math.sqrt(snapshot.arrival_rate * inputs.limits.horizon_s) / 2
    return min(_TAIL * load / (1 - load), by_chance)


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
    """Decode's present time per token at the SLO's percentile; 0 where nothing decodes.

    A request's TPOT is a mean over many paces. So requests differ less than the paces
    of one look do, in which one that has just begun may have waited out a chunk.
    """
    paces, percentile = _paces(inputs), inputs.constraints.percentile
    if not paces.count:
        return 0.0
    above = _SPREAD * NormalDist().inv_cdf(percentile / 100)
    return min(paces.at(percentile), paces.p50_ms * math.exp(above))


def _paces(inputs: DecisionInputs) -> LatencySummary:
    """Times per token: of what runs, or of what has ended where that says more.

    Of a few short answers each has made a few tokens since the last look, in or out of
    a chunk by chance; many like them have ended in the same window.
    """
    snapshot, enough = inputs.snapshot, inputs.limits.min_samples
    running, ended = snapshot.running_tpot, snapshot.tpot
    if not running.count or running.count < enough <= ended.count:
        return ended
    return running


def _slowdown(speeds: WorkerSpeeds, duty: float) -> float:
    return duty / speeds.decode_beside + (1 - duty) / speeds.decode_alone
