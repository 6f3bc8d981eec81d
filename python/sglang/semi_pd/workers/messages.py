# SPDX-License-Identifier: Apache-2.0
"""Every object that one Semi-PD process sends to another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sglang.semi_pd.utils import InstanceRole

if TYPE_CHECKING:
    from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
    from sglang.srt.managers.schedule_batch import ReqLogprob


@dataclass(frozen=True, slots=True)
class TakeCores:
    """To a worker on a CPU host: from now on, run on these cores."""

    cores: frozenset[int]


@dataclass(frozen=True, slots=True)
class PrefillTimes:
    """When the prompt was computed: ``time.perf_counter()``, one clock for the host."""

    forward_entry_time: float
    prefill_finished_time: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """A running request changes hands; its KV stays where it is.

    Sent by the worker that gives the request up, after it has made the receiver the
    owner of the request row and of its pages.

    Attributes:
        request: what the client asked for, as it arrived.
        row: index of the request's row in ``req_to_token``.
        committed_tokens: tokens whose KV is written.
        output_ids: tokens generated so far; the last one has no KV yet.
        sent_tokens: how many of ``output_ids`` the client has been sent.
        cached_tokens: prompt tokens that came from the prefix cache.
        logprob: log-probabilities of the prompt and of ``output_ids``, if asked for.
    """

    request: TokenizedGenerateReqInput
    row: int
    committed_tokens: int
    output_ids: list[int]
    sent_tokens: int
    cached_tokens: int
    logprob: ReqLogprob | None
    times: PrefillTimes
    handed_over_at: float
    """``time.monotonic()`` of the sender, to measure how long a handover takes."""


@dataclass(frozen=True, slots=True)
class Leave:
    """To a worker: end after this iteration; a successor takes over.

    Attributes:
        successor: generation of the pair that takes over.
    """

    successor: int


@dataclass(frozen=True, slots=True)
class LastHandover:
    """From a leaving prefill worker to its decode worker: no more will come."""


@dataclass(frozen=True, slots=True)
class HasLeft:
    """From a leaving worker to the main process, behind all that it ever sent.

    Attributes:
        unfinished: ids of the requests that it had and could not hand over.
    """

    role: InstanceRole
    generation: int
    unfinished: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """To a prefill worker: compute a request on from where it was interrupted.

    Attributes:
        request: what the client asked for, as it arrived.
        output_ids: tokens that the client has; generation goes on behind them.
    """

    request: TokenizedGenerateReqInput
    output_ids: list[int]


@dataclass(frozen=True, slots=True)
class DrainOutputs:
    """To the detokenizer: pass on all that these processes sent before they died."""

    pids: frozenset[int]


@dataclass(frozen=True, slots=True)
class OutputsDrained:
    """From the detokenizer: nothing of these processes is on the way any more."""

    pids: frozenset[int]


@dataclass(frozen=True, slots=True)
class Recover:
    """To a prefill worker, before all else: take over what dead workers left.

    Attributes:
        generations: of the pairs that are gone.
    """

    generations: frozenset[int]
