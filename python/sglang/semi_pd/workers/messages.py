# SPDX-License-Identifier: Apache-2.0
"""What one Semi-PD process sends to another while requests run.

What is sent when workers follow each other is in ``succession_messages``.

None has a field ``rid``: by that name SGLang's scheduler takes a message for the health
check it is about, and drops it while it is busy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sglang.semi_pd.sm_allocation import SMAllocation
    from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
    from sglang.srt.managers.schedule_batch import ReqLogprob


@dataclass(frozen=True, slots=True)
class TakeCores:
    """To a worker on a CPU host: from now on, run on these cores."""

    cores: frozenset[int]


@dataclass(frozen=True, slots=True)
class TakeSMs:
    """To a worker on a GPU with green contexts: from now on, run on your SMs of this.

    Attributes:
        serial: counts the splits; the worker's record says which one it took last.
    """

    serial: int
    allocation: SMAllocation


@dataclass(frozen=True, slots=True)
class PrefillTimes:
    """When prefill got and computed a prompt: ``time.perf_counter()``, of the host."""

    wait_queue_entry_time: float
    forward_entry_time: float
    prefill_finished_time: float


@dataclass(frozen=True, slots=True)
class Loan:
    """What the lender keeps of a request that it handed over.

    Attributes:
        number: counts the lender's handovers.
        lender: generation of the lender.
        shared_tokens: so many tokens at the start of the row lie in pages that stay the
            lender's, as part of its prefix cache; the receiver borrows them.
    """

    number: int
    lender: int
    shared_tokens: int


@dataclass(frozen=True, slots=True)
class Announced:
    """From prefill to decode: the last tokens of this prompt are being computed.

    Decode builds the request meanwhile, so its ``Handover`` is short.
    """

    request: TokenizedGenerateReqInput


@dataclass(frozen=True, slots=True)
class NotComing:
    """From prefill to decode: a request that was announced has ended before."""

    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """A running request changes hands; its KV stays where it is.

    Sent by the worker that gives the request up, after it has made the receiver the
    owner of the request row and of its pages. The row is found by its label
    (``utils.row_label``), because every rank has rows of its own.

    Attributes:
        request: what the client asked for, as it arrived; None if the receiver has it
            from an ``Announced`` or an ``Introduced``.
        loan: the lender's side of it; its number is in the label of the row.
        committed_tokens: tokens whose KV is written.
        output_ids: tokens generated so far; the last one has no KV yet.
        sent_tokens: how many of ``output_ids`` the client has been sent.
        is_settled: the lender has been given back what it lent.
        cached_tokens: prompt tokens that came from the prefix cache.
        logprob: log-probabilities of the prompt and of ``output_ids``, if asked for.
        is_passed_on: it was running already, in a decode worker that leaves.
    """

    request_id: str
    request: TokenizedGenerateReqInput | None
    loan: Loan
    committed_tokens: int
    output_ids: list[int]
    sent_tokens: int
    is_settled: bool
    cached_tokens: int
    logprob: ReqLogprob | None
    times: PrefillTimes
    handed_over_at: float
    """``time.monotonic()`` of the sender, to measure how long a handover takes."""
    received_at: float = 0.0
    """The same of the receiver, which sets it."""
    is_passed_on: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """A whole sequence, for a prefill worker that never had the request.

    Attributes:
        input_ids: the prompt.
        extra_key, priority: as SGLang's prefix cache keeps them.
    """

    input_ids: list[int]
    extra_key: str | None
    priority: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveBack:
    """A request that was handed over has ended; its KV goes into the prefix cache.

    Sent after the row and its pages have become the receiver's, and after the last
    forward that could write to them has finished.

    Attributes:
        request_id, loan: which request; ``loan`` as in its handover.
        has_row: False if the KV is gone (the request was put aside): then only what the
            lender keeps locked for it is to be let go.
        output_ids: tokens generated.
        committed_tokens, allocated_tokens: of the row; KV written, slots filled.
        shared_tokens: at the start of the row, in pages that were borrowed for it.
        reasoning_tokens: of ``output_ids``, as SGLang counts them.
        sequence: there if the receiver is not the lender, or was told already.
    """

    request_id: str
    loan: Loan
    has_row: bool
    output_ids: list[int]
    committed_tokens: int
    allocated_tokens: int
    shared_tokens: int
    reasoning_tokens: int
    sequence: Sequence | None


@dataclass(frozen=True, slots=True)
class MakeRoom:
    """Decode asks prefill to evict from its prefix cache.

    Attributes:
        pages: so many are missing.
        sequence: to be answered in the block table once the pages are free; 0: no
            answer needed.
    """

    pages: int
    sequence: int
