# SPDX-License-Identifier: Apache-2.0
"""A request goes on in another worker as if it had never left the first.

What SGLang builds from the client's words is a request that begins. This brings it to
where the other worker left it: tokens, which of them were thoughts, what the client has
been sent, the state of its grammar. What penalties have counted belongs to a batch: see
``penalties``.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from sglang.srt.managers.schedule_batch import FINISH_ABORT

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

NO_INPUT_LOGPROBS = -1
"""Upstream's: none of what is computed first, here the tokens so far too, is wanted."""
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
    req.logprob_start_len = NO_INPUT_LOGPROBS


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


def count_reasoning(req: Req, think_end_ids: list[int] | None) -> None:
    """Count how many of a request's tokens were thoughts, as one scheduler does.

    SGLang counts a token when it takes the result of its step; of tokens that came from
    elsewhere, the first one among them, it takes none.

    Args:
        think_end_ids: the tokens that end the thoughts; None without a parser for them.
    """
    if req.require_reasoning and think_end_ids:
        req.update_reasoning_tokens(list(req.output_ids), think_end_ids)


def accept_by_grammar(req: Req, tokens: list[int]) -> None:
    """Bring a request's grammar to where it stood after ``tokens``.

    By ``current_token`` SGLang knows that a grammar has the newest one; not every
    backend sets it. A token that the grammar refuses ends the request, as in SGLang.
    """
    if req.grammar is None or not tokens:
        return
    try:
        for token in tokens:
            req.grammar.accept_token(token)
    except ValueError as error:
        req.to_finish = FINISH_ABORT(str(error), HTTPStatus.INTERNAL_SERVER_ERROR)
    req.grammar.current_token = tokens[-1]
