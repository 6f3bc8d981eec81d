# SPDX-License-Identifier: Apache-2.0
"""The decode worker: SGLang's scheduler in its disaggregated decode role.

Upstream's role reserves memory for a prompt and waits for its KV to arrive. Here a
handover brings a request whose KV is already in the shared pool: it is adopted on the
spot and joins the next batch. Upstream's queues stay, for requests that decode itself
had to put aside when memory ran out.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from sglang.semi_pd.utils import row_label
from sglang.semi_pd.workers.adoption_queue import AdoptionQueue
from sglang.semi_pd.workers.borrowing_cache import (
    AdoptedCache,
    Borrowed,
    BorrowingCache,
)
from sglang.semi_pd.workers.continuation import count_reasoning
from sglang.semi_pd.workers.decode_room import DecodeRoom, put_all_aside
from sglang.semi_pd.workers.decode_succession import DecodeSuccession
from sglang.semi_pd.workers.handover import adopt, flush, socket_of
from sglang.semi_pd.workers.messages import Announced, Handover, Loan
from sglang.semi_pd.workers.news_streamer import NewsStreamer
from sglang.semi_pd.workers.penalties import count_adopted, count_as_undivided
from sglang.semi_pd.workers.succession_messages import LastGiveBack, Leave
from sglang.semi_pd.workers.worker_scheduler import BATCH
from sglang.semi_pd.workers.worker_spec import give_back_address
from sglang.srt.managers.io_struct import AbortReq, GetInternalStateReq, sock_send
from sglang.srt.managers.schedule_batch import NextBatchPlan, Req

if TYPE_CHECKING:
    import zmq
    from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.managers.scheduler_components.output_streamer import (
        SchedulerOutputStreamer,
    )

logger = logging.getLogger(__name__)

DUE_POLL_MS = 1
"""The heartbeat goes on meanwhile."""


def borrowing_cache(original: Callable[..., Any], context: Any) -> Any:
    """The cache of a worker that has no tree, but gives to one that has, if any has."""
    spec = DecodeScheduler.spec
    if not spec.has_prefix_cache:
        return AdoptedCache(context.params)
    return BorrowingCache(
        context.params, DecodeScheduler.memory.table, lender=spec.generation
    )


class DecodeScheduler(DecodeSuccession):
    """Generates tokens for requests that the prefill worker hands over."""

    queue_replacement = {
        "sglang.srt.disaggregation.decode.DecodePreallocQueue": AdoptionQueue
    }
    around = {
        f"{BATCH}.cumulate_penalty_output_tokens": count_as_undivided,
        f"{BATCH}.prepare_for_prebuilt": count_adopted,
        f"{BATCH}.retract_decode": put_all_aside,
        "sglang.srt.mem_cache.registry.default_radix_cache_factory": borrowing_cache,
    }

    def init_ipc_channels(self, port_args: Any) -> None:
        super().init_ipc_channels(port_args)
        if self.recv_from_tokenizer is not None:
            # One socket for both senders: handovers are then broadcast to all ranks
            # in one order with everything else, and wake a sleeping scheduler.
            self.recv_from_tokenizer.bind(self.spec.handover_address)

    def init_request_dispatcher(self) -> None:
        super().init_request_dispatcher()
        dispatcher: Callable[[Any], Any] = self._request_dispatcher

        def dispatch(message: Any) -> Any:
            answer = dispatcher(message)
            # Of what both receive, prefill answers for both.
            return answer if isinstance(message, GetInternalStateReq) else None

        self._request_dispatcher: Callable[[Any], Any] = dispatch

    def init_output_streamer(self) -> None:
        super().init_output_streamer()
        streamer: SchedulerOutputStreamer = self.output_streamer
        self.output_streamer: NewsStreamer = NewsStreamer.like(streamer)

    def receive(self, handover: Handover) -> None:
        """Adopt a request as soon as upstream has built it."""
        handover = dataclasses.replace(handover, received_at=time.monotonic())
        if handover.request is None:
            self.complete(self.announced, handover)
        else:
            self._unbuilt[handover.request_id] = handover
            self.build(handover.request)

    def announce(self, message: Announced) -> None:
        """Build a request whose prompt is being computed."""
        self.announced.expect(message.request)
        self.build(message.request)

    def build(self, request: TokenizedGenerateReqInput) -> None:
        request.bootstrap_host, request.bootstrap_room = "semi-pd", 1
        self.handle_generate_request(request)

    def adopt(self, req: Req) -> bool:
        """Let ``req`` have what its handover brought; False if it still runs in the
        predecessor."""
        handover = self._unbuilt.pop(req.rid, None)
        if handover is None:
            self.announced.keep(req)
            self._acquaintances.keep(req)
            return False
        row = self.row_of(handover)
        if req.to_finish is not None and handover.request is not None:
            # Aborted while its grammar was compiled: upstream has dropped its prompt,
            # by which its KV is known.
            req.origin_input_ids = handover.request.input_ids
        adopt(req, handover, row)
        count_reasoning(req, self.model_config.think_end_ids)
        req.semi_pd_borrowed = Borrowed(handover.loan, handover.is_settled)
        req.semi_pd_adoption = handover, time.monotonic()
        return True

    def give_back(self) -> None:
        if isinstance(self.tree_cache, BorrowingCache):
            self.tree_cache.give_back()

    def _leave_soon(self, message: Leave) -> None:
        """What ends from now on goes to the next prefill worker; this one is told."""
        super()._leave_soon(message)
        send = self._use_lender(message.successor)
        if self._to_lender is not None:
            sock_send(self._to_lender, LastGiveBack())
            flush(self._to_lender)
        self._to_lender = send

    def _use_lender(self, generation: int) -> zmq.Socket | None:
        """Give back to, and ask, the prefill worker of a generation."""
        socket = send = None
        if self.spec.tp_rank == 0:
            socket = socket_of(give_back_address(self.spec.run_directory, generation))
            send = partial(sock_send, socket)
        self._room.turn_to(generation, send)
        if isinstance(self.tree_cache, BorrowingCache):
            self.tree_cache.give_back()
            self.tree_cache.turn_to(generation, send)
        return socket

    def on_end(self) -> None:
        """Leave in the log how long handovers took."""
        logger.info("Handovers took, P50 / P99 in ms: %s", self.handover_times)

    def abort_request(self, recv_req: AbortReq) -> None:
        self.note_early(recv_req)
        # Upstream does not know the queue of those that wait for retracted ones.
        queue = self.disagg_decode_prealloc_queue
        meant = [
            req
            for req in queue.adopted
            if recv_req.abort_all or req.rid.startswith(recv_req.rid)
        ]
        queue.adopted = [req for req in queue.adopted if req not in meant]
        self.waiting_queue.extend(meant)
        super().abort_request(recv_req)

    def init_running_status(self) -> None:
        super().init_running_status()
        self._room = DecodeRoom(
            self.token_to_kv_pool_allocator, self.memory.table, self.agree
        )
        self._to_lender = self._use_lender(self.spec.generation)

    def process_decode_queue(self) -> None:
        self.give_back()
        self.introduce_more()
        queue = self.disagg_decode_prealloc_queue
        running = self.running_batch.batch_size() + len(self.waiting_queue)
        to_resume = queue.pages_to_resume
        self._room.demand(running, to_resume)
        resumed = queue.resume_retracted_reqs()
        for req in resumed:
            self._label_row(req)
        self.waiting_queue.extend(resumed)
        adopted = queue.pop_adopted()
        for req in adopted:
            self.handover_times.joined(*req.semi_pd_adoption)
        self.waiting_queue.extend(adopted)
        is_running = not self.running_batch.is_empty()
        has_work = self.waiting_queue or is_running or queue.retracted_queue
        # A standby's reserve would be taken from the worker that serves.
        self._room.keep_reserve(has_work=bool(has_work) and not self.is_standby)
        if is_running or to_resume:
            self._room.ask_ahead()

    def _label_row(self, req: Req) -> None:
        """Its row is a new one: let it be found again, as the one it was handed."""
        loan: Loan = req.semi_pd_borrowed.loan
        label = row_label(req.rid, loan.number)
        self.memory.table.move_row(req.req_pool_idx, self.memory.manifest.slot, label)

    def get_next_disagg_decode_batch_to_run(
        self, running_batch: ScheduleBatch
    ) -> NextBatchPlan:
        """As upstream, but before a request is put aside prefill is asked to evict."""
        reqs = (*running_batch.reqs, *self.waiting_queue)
        if self._room.must_wait(reqs, is_last=running_batch.batch_size() < 2):
            return NextBatchPlan(batch_to_run=None, running_batch=running_batch)
        if self.enable_overlap and self.last_batch:
            with self.output_streamer.with_next_result():
                return super().get_next_disagg_decode_batch_to_run(running_batch)
        return super().get_next_disagg_decode_batch_to_run(running_batch)

    def on_idle(self) -> None:
        # What waits for memory is no reason to give back what there is.
        waits = self.disagg_decode_prealloc_queue.retracted_queue
        if not self.running_batch.is_empty() or waits:
            return
        if self.announced.is_one_due() and self.recv_from_tokenizer is not None:
            # Upstream's checks can wait; who is coming should not wait for them.
            self.return_unused()
            self.recv_from_tokenizer.poll(DUE_POLL_MS)
        else:
            super().on_idle()

    def return_unused(self) -> None:
        self.give_back()
        super().return_unused()
