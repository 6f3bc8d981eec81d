# SPDX-License-Identifier: Apache-2.0
"""A request changes hands between two workers while its KV stays in place.

The sender makes the receiver the owner of the request row and its pages, then sends
one message. Aborts travel on the same pipe, so that none overtakes its request.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
import zmq
from sglang.semi_pd.memory.id_pool import Ids
from sglang.semi_pd.utils import InstanceRole
from sglang.semi_pd.workers.continuation import accept_by_grammar, continue_from
from sglang.semi_pd.workers.leased_allocator import pages_of
from sglang.semi_pd.workers.messages import Handover, LastHandover, PrefillTimes
from sglang.srt.managers.io_struct import AbortReq, sock_send
from sglang.srt.managers.schedule_batch import Req, ReqKvInfo, ReqLogprob
from sglang.srt.utils.network import get_zmq_socket

if TYPE_CHECKING:
    from sglang.semi_pd.memory.block_table import BlockTable
    from sglang.semi_pd.resident.shared_pools import SharedReqToTokenPool


class NoTransfer:
    """Stands where upstream keeps a request's KV transfer; there is none to abort."""

    def abort(self) -> None:
        """Nothing is on the way."""


no_transfer = NoTransfer()

LINGER_MS = 10_000


class HandoverSender:
    """The giving end; lives in the worker that gives requests up."""

    def __init__(
        self,
        address: str,
        generation: int,
        rows: SharedReqToTokenPool,
        table: BlockTable,
    ) -> None:
        self._context = zmq.Context(1)
        self._socket = get_zmq_socket(self._context, zmq.PUSH, address, False)
        self._generation = generation
        self._rows, self._table = rows, table
        self._to_slot: int | None = None
        device = torch.get_device_module(rows.device)
        self._copies = device.StreamContext(device.Stream())

    def hand_over(self, req: Req) -> None:
        """Give up ``req``, whose KV is written up to ``req.kv_committed_len``."""
        row = req.req_pool_idx
        committed = req.kv_committed_len
        self._give(row, committed)
        self._rows.give_up(req)
        req.kv = None
        self._send(req, row, committed)
        if req.to_finish is not None:
            self.forward(AbortReq(rid=req.rid))

    def pass_on(self, handover: Handover) -> None:
        """Hand over what was handed to this worker and not yet adopted."""
        self._give(handover.row, handover.committed_tokens)
        sock_send(self._socket, handover)

    def forward(self, abort: AbortReq) -> None:
        """Pass an abort on, behind everything handed over so far."""
        sock_send(self._socket, abort)

    def conclude(self) -> None:
        """Say that no more will come, and return when all of it is on its way."""
        sock_send(self._socket, LastHandover())
        self.close()

    def close(self) -> None:
        """Return when all that was sent is on its way."""
        self._context.destroy(linger=LINGER_MS)

    def _send(self, req: Req, row: int, committed: int) -> None:
        sock_send(
            self._socket,
            Handover(
                request=req.semi_pd_request,
                row=row,
                committed_tokens=committed,
                output_ids=list(req.output_ids),
                sent_tokens=req.send_token_offset,
                cached_tokens=req.cached_tokens,
                logprob=_portable(req.logprob) if req.return_logprob else None,
                times=PrefillTimes(
                    req.time_stats.forward_entry_time,
                    req.time_stats.prefill_finished_time,
                ),
                handed_over_at=time.monotonic(),
            ),
        )

    def _give(self, row: int, committed: int) -> None:
        to_slot = self._receiver()
        self._table.move_pages(self._pages(row, committed), to_slot)
        self._table.move_row(row, to_slot)

    def _pages(self, row: int, committed: int) -> Ids:
        """The pages of a row, without waiting for the forward that runs now.

        The row was written before the prompt's last chunk, whose result is known, so a
        stream of its own may read it at once.
        """
        with self._copies:
            slots = self._rows.req_to_token[row, :committed].to("cpu", torch.int64)
        return pages_of(slots, self._table.layout.page_size)

    def _receiver(self) -> int:
        if self._to_slot is None:
            self._to_slot = self._table.slot_of(InstanceRole.DECODE, self._generation)
        return self._to_slot


def adopt(req: Req, handover: Handover) -> None:
    """Make ``req``, newly built from the request, the one that was handed over.

    Leaves it as upstream's decode role has a request whose KV has just arrived.
    """
    committed = handover.committed_tokens
    req.req_pool_idx = handover.row
    req.kv = ReqKvInfo(kv_allocated_len=committed, swa_evicted_seqlen=0)
    req.kv_committed_len = committed
    req.semi_pd_request = handover.request
    continue_from(req, handover.output_ids, sent_tokens=handover.sent_tokens)
    accept_by_grammar(req, handover.output_ids[:-1])  # upstream adds the newest
    req.full_untruncated_fill_ids = req.origin_input_ids + req.output_ids
    req.prefix_indices = torch.empty((0,), dtype=torch.int64)
    req.set_extend_range(0, committed)
    req.cached_tokens = req.already_computed = handover.cached_tokens
    req.cached_tokens_device = handover.cached_tokens
    if handover.logprob is not None:
        req.logprob = handover.logprob
    req.time_stats.forward_entry_time = handover.times.forward_entry_time
    req.time_stats.prefill_finished_time = handover.times.prefill_finished_time
    req.time_stats.has_timing_data = True  # the main process wants it with the output
    req.time_stats.set_wait_queue_entry_time()


def _portable(logprob: ReqLogprob) -> ReqLogprob:
    """Upstream may have left tensors in these lists, to copy them late."""
    values = logprob.output_token_ids_logprobs_val
    if values:
        logprob.output_token_ids_logprobs_val = [
            v.tolist() if isinstance(v, torch.Tensor) else v for v in values
        ]
    return logprob
