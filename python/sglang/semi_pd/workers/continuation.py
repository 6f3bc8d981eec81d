# SPDX-License-Identifier: Apache-2.0
"""A request goes on in another worker as if it had never left the first.

What SGLang builds from the client's words is a request that begins. This brings it to
where the other worker left it: tokens, what the client has been sent, the state of its
grammar, what penalties have counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.sampling.penaltylib.orchestrator import BatchedPenalizerOrchestrator

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

NOT_SENT_AGAIN = None
"""Stands in a request's log-probabilities for those that the client has."""


def continue_from(req: Req, output_ids: list[int], *, sent_tokens: int) -> None:
    """Give a request just built the tokens it has, of which some were sent."""
    req.output_ids.extend(output_ids)
    if not sent_tokens:
        return
    unsent = len(output_ids) - sent_tokens
    detokenized, _ = req.init_incremental_detokenize()
    req.send_decode_id_offset = len(detokenized) - unsent
    req.send_token_offset = req.send_output_token_logprobs_offset = sent_tokens
    req.input_logprob_sent = True


def pad_logprobs(req: Req) -> None:
    """Let a request's log-probabilities begin where its tokens go on."""
    logprob = req.logprob
    for name in (
        "output_token_logprobs_val",
        "output_token_logprobs_idx",
        "output_top_logprobs_val",
        "output_top_logprobs_idx",
        "output_token_ids_logprobs_val",
        "output_token_ids_logprobs_idx",
    ):
        values = getattr(logprob, name)
        if values is not None:  # asked for
            values.extend([NOT_SENT_AGAIN] * len(req.output_ids))


def accept_by_grammar(req: Req, tokens: list[int]) -> None:
    """Bring a request's grammar to where it stood after ``tokens``."""
    if req.grammar is not None:
        for token in tokens:
            req.grammar.accept_token(token)


class _Alone:
    """One request as the batch that penalties are counted for."""

    def __init__(self, req: Req, device: str) -> None:
        self.reqs, self.device = [req], device


def count_penalties(batch: ScheduleBatch, *, newest_left_out: int) -> None:
    """Count for penalties what was generated before this worker had the requests.

    SGLang counts a token when it prepares the step after the next one (under overlap
    scheduling the newest token is not known earlier), and the last token of the prompt
    first of all.

    Args:
        newest_left_out: tokens at the end of each request that are counted later: 1
            where this batch computes the next token, 0 for the prefill role, which
            will not prepare a decode step.
    """
    penalties = batch.sampling_info.penalizer_orchestrator
    continued = any(len(req.output_ids) > newest_left_out for req in batch.reqs)
    if not (penalties.is_required and continued):
        return
    first, *others = (_Alone(req, batch.device) for req in batch.reqs)
    total = _counted(penalties, first, newest_left_out)
    for other in others:
        total.merge(_counted(penalties, other, newest_left_out))
        first.reqs += other.reqs  # merging prepares what it lacks for these
    total.batch = batch
    batch.sampling_info.penalizer_orchestrator = total


def _counted(
    like: BatchedPenalizerOrchestrator, alone: Any, newest_left_out: int
) -> BatchedPenalizerOrchestrator:
    req = alone.reqs[0]
    penalties = BatchedPenalizerOrchestrator(
        like.vocab_size, alone, set(like.penalizers)
    )
    history = [req.origin_input_ids[-1], *req.output_ids]
    for token in history[: len(req.output_ids) - newest_left_out]:
        penalties.cumulate_output_tokens(
            torch.tensor([token], dtype=torch.int64, device=like.device)
        )
    return penalties
