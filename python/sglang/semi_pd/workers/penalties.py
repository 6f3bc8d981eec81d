# SPDX-License-Identifier: Apache-2.0
"""Penalties count the tokens that they would count in one scheduler.

SGLang counts a token when it prepares the step after the next one: under overlap
scheduling the newest token is not known earlier. A request that has tokens from another
worker comes with all of them known, and none of them counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.sampling.penaltylib.orchestrator import BatchedPenalizerOrchestrator

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch


def count_continued(original: Callable[[Any], None], batch: ScheduleBatch) -> None:
    """Penalties know what a resumed request generated before it came here."""
    original(batch)
    count_penalties(batch, newest_left_out=0)


def count_adopted(original: Callable[[Any], None], batch: ScheduleBatch) -> None:
    """Penalties know what adopted requests generated elsewhere."""
    original(batch)
    count_penalties(batch, newest_left_out=1)


def count_as_undivided(original: Callable[[Any], None], batch: ScheduleBatch) -> None:
    """Penalise the same tokens as one scheduler with overlap does.

    There the newest token is not known yet when the next step is prepared: a request's
    first decode step counts the last token of its prompt. An adopted request knows its
    newest token already and would count it twice.
    """
    fresh = [req for req in batch.reqs if req.decode_batch_idx == 0]
    known = [req.output_ids for req in fresh]
    for req in fresh:
        req.output_ids = req.output_ids[:-1]
    try:
        original(batch)
    finally:
        for req, output_ids in zip(fresh, known, strict=True):
            req.output_ids = output_ids


class _Alone:
    """One request as the batch that penalties are counted for."""

    def __init__(self, req: Req, device: str) -> None:
        self.reqs, self.device = [req], device


def count_penalties(batch: ScheduleBatch, *, newest_left_out: int) -> None:
    """Count for penalties what was generated before this worker had the requests.

    SGLang counts the last token of the prompt first of all.

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
    if not penalties.is_required:  # its neighbours need them
        return penalties
    history = [req.origin_input_ids[-1], *req.output_ids]
    counted = history[: len(req.output_ids) - newest_left_out]
    # In one copy to the device, for every stream waits for it.
    on_device = torch.tensor(counted, dtype=torch.int64, device=like.device)
    for token in on_device.unsqueeze(1):
        penalties.cumulate_output_tokens(token)
    return penalties
