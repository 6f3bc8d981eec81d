# SPDX-License-Identifier: Apache-2.0
"""A request changes hands between two workers while its KV stays in place.

The sender makes the receiver the owner of the request row and its pages; those that its
prefix cache owns it shares. Then it sends one message. Aborts travel on the same pipe,
so that none overtakes its request.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import zmq
from sglang.semi_pd.errors import SemiPDError
from sglang.semi_pd.memory.id_pool import Ids
from sglang.semi_pd.utils import InstanceRole, row_label
from sglang.semi_pd.workers.continuation import accept_by_grammar, continue_from
from sglang.semi_pd.workers.messages import (
    Announced,
    Handover,
    Loan,
    NotComing,
    PrefillTimes,
)
from sglang.semi_pd.workers.slots import pages_of
from sglang.semi_pd.workers.succession_messages import LastHandover
from sglang.semi_pd.workers.worker_spec import handover_address
from sglang.srt.managers.io_struct import AbortReq, sock_send
from sglang.srt.managers.schedule_batch import Req, ReqKvInfo, ReqLogprob
from sglang.srt.utils.network import get_zmq_socket

if TYPE_CHECKING:
    from sglang.semi_pd.memory.block_table import BlockTable
    from sglang.semi_pd.resident.shared_pools import SharedReqToTokenPool
    from sglang.semi_pd.workers.worker_spec import WorkerSpec
    from sglang.srt.managers.io_struct import TokenizedGenerateReqInput

ROW_TIMEOUT_S = 30.0
ROW_POLL_S = 0.0002
LINGER_MS = 10_000


class HandoverError(SemiPDError):
    """A request was announced, but its row is not there."""


class NoTransfer:
    """Stands where upstream keeps a request's KV transfer; there is none to abort."""

    def abort(self) -> None:
        """Nothing is on the way."""


no_transfer = NoTransfer()


class HandoverSender:
    """The giving end; lives in the worker that gives requests up.

    Every rank moves its own pages and row; only the first one speaks.

    Args:
        to_generation: of the decode worker that receives.
        first: number of the first loan; each is of its lender's only once.

    Attributes:
        sent: number of the next loan.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        to_generation: int,
        rows: SharedReqToTokenPool,
        table: BlockTable,
        first: int = 0,
    ) -> None:
        address = handover_address(spec.run_directory, to_generation)
        self._socket = socket_of(address) if spec.tp_rank == 0 else None
        self._generation, self._to_generation = spec.generation, to_generation
        self._rows, self._table = rows, table
        self._to_slot: int | None = None
        self._announced: dict[str, TokenizedGenerateReqInput] = {}
        self.sent = first
        device = torch.get_device_module(rows.device)
        self._copies = device.StreamContext(device.Stream())

    def announce(self, req: Req) -> None:
        """``req`` is to be handed over soon: the receiver may build it."""
        self._announced[req.rid] = req.semi_pd_request
        self._send(Announced(req.semi_pd_request))

    def is_not_coming(self, req: Req) -> None:
        """``req`` has ended; if it was announced the receiver may forget it."""
        if self._announced.pop(req.rid, None) is not None:
            self._send(NotComing(req.rid))

    def hand_over(self, req: Req, shared_tokens: int, *, is_rewritten: bool) -> Loan:
        """Give up ``req``, whose KV is written up to ``req.kv_committed_len``.

        Args:
            shared_tokens: at the start of its row, in pages that stay this worker's.
            is_rewritten: whether this thread's stream still writes to its row. That is
                waited for, and with it the forward which that stream waits for.
        """
        loan = Loan(self.sent, self._generation, shared_tokens)
        self.sent += 1
        to_slot = self._receiver()
        committed = req.kv_committed_len
        row = self._rows.req_to_token[req.req_pool_idx, :committed]
        slots = _on_host(row) if is_rewritten else self._without_waiting(row)
        # The row last: once it has changed hands, everything has.
        if shared_tokens:
            self._table.share_pages(self._pages(slots[:shared_tokens]), to_slot)
        if shared_tokens < committed:
            self._table.move_pages(self._pages(slots[shared_tokens:]), to_slot)
        label = row_label(req.rid, loan.number)
        self._table.move_row(self._rows.give_up(req), to_slot, label)
        req.kv = None
        handover = handover_of(req, loan, is_settled=False)
        if self._announced.pop(req.rid, None) is handover.request:
            handover = dataclasses.replace(handover, request=None)
        self._send(handover)
        return loan

    def forward(self, abort: AbortReq) -> None:
        """Pass an abort on, behind everything handed over so far."""
        self._send(abort)

    def conclude(self) -> None:
        """Say that no more will come, and return when all of it is on its way."""
        self._send(LastHandover())
        self.close()

    def close(self) -> None:
        """Return when all that was sent is on its way."""
        if self._socket is not None:
            flush(self._socket)

    def _send(self, message: Any) -> None:
        if self._socket is not None:
            sock_send(self._socket, message)

    def _without_waiting(self, row: torch.Tensor) -> torch.Tensor:
        """The token slots of a row on the host, whatever forward runs now.

        The row was written before the prompt's last chunk, whose result is known, so a
        stream of its own may read it at once.
        """
        with self._copies:
            return _on_host(row)

    def _pages(self, slots: torch.Tensor) -> Ids:
        return pages_of(slots, self._table.layout.page_size)

    def _receiver(self) -> int:
        if self._to_slot is None:
            self._to_slot = self._table.slot_of(
                InstanceRole.DECODE, self._to_generation
            )
        return self._to_slot


def _on_host(row: torch.Tensor) -> torch.Tensor:
    # Copied as it is: to convert it on the GPU would wait for SMs, which a batch keeps
    # busy; a copy does not need any.
    return row.cpu().to(torch.int64)


def socket_of(address: str) -> zmq.Socket:
    """A socket that sends to another worker's."""
    return get_zmq_socket(zmq.Context(1), zmq.PUSH, address, False)


def flush(socket: zmq.Socket) -> None:
    """Close a socket of ``socket_of`` when all that was sent is on its way.

    A child process does not wait for that when it ends.
    """
    socket.context.destroy(linger=LINGER_MS)


def handover_of(req: Req, loan: Loan, *, is_settled: bool) -> Handover:
    """What the next worker must know of a request to go on with it."""
    return Handover(
        request_id=req.rid,
        request=req.semi_pd_request,
        loan=loan,
        committed_tokens=req.kv_committed_len,
        output_ids=list(req.output_ids),
        sent_tokens=req.send_token_offset,
        is_settled=is_settled,
        cached_tokens=req.cached_tokens,
        logprob=_portable(req.logprob) if req.return_logprob else None,
        times=PrefillTimes(
            req.time_stats.wait_queue_entry_time,
            req.time_stats.forward_entry_time,
            req.time_stats.prefill_finished_time,
        ),
        handed_over_at=time.monotonic(),
    )


def adopt(req: Req, handover: Handover, row: int) -> None:
    """Make ``req``, newly built from the request, the one that was handed over.

    Leaves it as upstream's decode role has a request whose KV has just arrived.
    """
    committed = handover.committed_tokens
    req.req_pool_idx = row
    req.kv = ReqKvInfo(kv_allocated_len=committed, swa_evicted_seqlen=0)
    req.kv_committed_len = committed
    req.semi_pd_request = handover.request
    continue_from(req, handover.output_ids, sent_tokens=handover.sent_tokens)
    accept_by_grammar(req, handover.output_ids)
    req.full_untruncated_fill_ids = req.origin_input_ids + req.output_ids
    req.prefix_indices = torch.empty((0,), dtype=torch.int64)
    req.set_extend_range(0, committed)
    req.cached_tokens = handover.cached_tokens
    req.already_computed = committed  # so that upstream does not count it as cached
    req.cached_tokens_device = handover.cached_tokens
    if handover.logprob is not None:
        req.logprob = handover.logprob
    req.time_stats.forward_entry_time = handover.times.forward_entry_time
    req.time_stats.prefill_finished_time = handover.times.prefill_finished_time
    req.time_stats.has_timing_data = True  # the main process wants it with the output
    req.time_stats.set_wait_queue_entry_time()
    # The client is told how long it waited for its first forward, which was prefill's.
    req.time_stats.wait_queue_entry_time = handover.times.wait_queue_entry_time


def find_row(table: BlockTable, label: int, meanwhile: Callable[[], None]) -> int:
    """The row with ``label`` that this worker was handed.

    The message comes through the first rank, so another rank's row may be some
    microseconds behind it.

    Args:
        meanwhile: called while waiting; it must do what the giver may be waiting for.

    Raises:
        HandoverError: the row does not come.
    """
    assert table.lease is not None, "a worker has a lease"
    deadline = time.monotonic() + ROW_TIMEOUT_S
    while True:
        for found in table.labelled_rows(table.lease.slot):
            if found.label == label:
                return found.row
        if time.monotonic() > deadline:
            raise HandoverError(
                f"row {label:#x} was announced and did not come",
                why=f"the other worker of this rank was silent for {ROW_TIMEOUT_S:g} s",
                mend="its lines in the log say more",
            )
        meanwhile()
        time.sleep(ROW_POLL_S)


def _portable(logprob: ReqLogprob) -> ReqLogprob:
    """Upstream may have left tensors in these lists, to copy them late."""
    values = logprob.output_token_ids_logprobs_val
    if values:
        logprob.output_token_ids_logprobs_val = [
            v.tolist() if isinstance(v, torch.Tensor) else v for v in values
        ]
    return logprob
