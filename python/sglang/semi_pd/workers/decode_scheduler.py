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

from sglang.semi_pd.utils import InstanceRole, row_label
from sglang.semi_pd.workers.borrowing_cache import Borrowed, BorrowingCache
from sglang.semi_pd.workers.continuation import count_penalties
from sglang.semi_pd.workers.early_adoption import EarlyAdoption
from sglang.semi_pd.workers.handover import (
    adopt,
    find_row,
    flush,
    handover_of,
    socket_of,
)
from sglang.semi_pd.workers.messages import (
    Handover,
    LastGiveBack,
    LastHandover,
    Leave,
)
from sglang.semi_pd.workers.room import RoomRequest
from sglang.semi_pd.workers.worker_scheduler import BATCH
from sglang.semi_pd.workers.worker_spec import give_back_address, handover_address
from sglang.srt.disaggregation.decode import DecodePreallocQueue
from sglang.srt.disaggregation.utils import DisaggregationMode
from sglang.srt.managers.io_struct import AbortReq, GetInternalStateReq, sock_send
from sglang.srt.managers.schedule_batch import NextBatchPlan, Req
from sglang.srt.managers.scheduler_components.output_streamer import (
    SchedulerOutputStreamer,
)
from sglang.utils import TypeBasedDispatcher

if TYPE_CHECKING:
    import zmq
    from sglang.srt.managers.schedule_batch import ScheduleBatch

logger = logging.getLogger(__name__)

DECODE_RESERVE_PAGES = 4096
LARGEST_RESERVE_SHARE = 16
"""Free pages only decode may take: 4096, but at most a sixteenth of the pool."""

MIN_LEASE_PAGES = 32
"""Pages kept ready beyond what the running batch needs for its next two steps."""


class AdoptionQueue(DecodePreallocQueue):
    """Where adopted requests arrive, and where retracted ones wait for memory."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.adopted: list[Req] = []

    def _init_kv_manager(self) -> None:  # type: ignore[override]
        return None

    def add(self, req: Req, is_retracted: bool = False) -> None:  # noqa: FBT001
        if is_retracted:
            req.retraction_mb_id = None
            self.retracted_queue.append(req)
        else:
            self.scheduler.adopt(req)
            self.adopted.append(req)

    @property
    def tokens_to_resume(self) -> int:
        """Tokens that must be free for the first retracted request to run again."""
        if not self.retracted_queue:
            return 0
        running = self._active_reserved_tokens()
        return running + self._prealloc_required_tokens(self.retracted_queue[0])[0]

    def _prealloc_required_tokens(self, req: Req) -> tuple[int, int]:
        full, swa = super()._prealloc_required_tokens(req)
        if not self._active_req_count():
            # Alone, it needs no more than itself: more might never be free.
            full = self._prealloc_kv_lens(req)[0] + self.tree_cache.page_size
        return full, swa

    def pop_adopted(self) -> list[Req]:
        """Requests that may join the batch.

        While retracted ones wait, they do too; except one by one when the batch is so
        small that it could not free memory by itself: they hold what the others need.
        """
        most = len(self.adopted)
        if self.retracted_queue:
            running = self.scheduler.running_batch.batch_size()
            most = 1 if running + len(self.scheduler.waiting_queue) < 2 else 0
        adopted, self.adopted = self.adopted[:most], self.adopted[most:]
        return adopted


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


class NewsStreamer(SchedulerOutputStreamer):
    """Upstream streams each request that joins: one that goes on has nothing to say."""

    def stream_output(
        self, reqs: list[Req], return_logprob: Any, skip_req: Req | None = None
    ) -> None:
        news = [
            r for r in reqs if r.finished() or len(r.output_ids) > r.send_token_offset
        ]
        super().stream_output(news, return_logprob, skip_req)


def count_adopted(original: Callable[[Any], None], batch: ScheduleBatch) -> None:
    """Penalties know what adopted requests generated elsewhere."""
    original(batch)
    count_penalties(batch, newest_left_out=1)


def borrowing_cache(original: Callable[..., Any], context: Any) -> Any:
    """The cache of a worker that has no tree, but gives to one that has."""
    spec = DecodeScheduler.spec
    if not spec.has_prefix_cache:
        return original(context)
    return BorrowingCache(
        context.params, DecodeScheduler.memory.table, lender=spec.generation
    )


class DecodeScheduler(EarlyAdoption):
    """Generates tokens for requests that the prefill worker hands over."""

    _to_lender: zmq.Socket | None

    queue_replacement = {
        "sglang.srt.disaggregation.decode.DecodePreallocQueue": AdoptionQueue
    }
    around = {
        f"{BATCH}.cumulate_penalty_output_tokens": count_as_undivided,
        f"{BATCH}.prepare_for_prebuilt": count_adopted,
        "sglang.srt.mem_cache.registry.default_radix_cache_factory": borrowing_cache,
    }

    def init_ipc_channels(self, port_args: Any) -> None:
        super().init_ipc_channels(port_args)
        self._handovers: dict[str, Handover] = {}
        self._prefill_has_left = False
        if self.recv_from_tokenizer is not None:
            # One socket for both senders: handovers are then broadcast to all ranks
            # in one order with everything else, and wake a sleeping scheduler.
            self.recv_from_tokenizer.bind(self.spec.handover_address)

    def init_request_dispatcher(self) -> None:
        super().init_request_dispatcher()
        dispatcher: TypeBasedDispatcher = self._request_dispatcher
        dispatcher += TypeBasedDispatcher(
            [(Handover, self.receive), (LastHandover, self._has_last_handover)]
        )

        def dispatch(message: Any) -> Any:
            answer = dispatcher(message)
            # Of what both receive, prefill answers for both.
            return answer if isinstance(message, GetInternalStateReq) else None

        self._request_dispatcher: Callable[[Any], Any] = dispatch

    def init_output_streamer(self) -> None:
        super().init_output_streamer()
        # Upstream's decode role leaves the prompt's log-probabilities to prefill.
        streamer: SchedulerOutputStreamer = self.output_streamer
        parts = {
            f.name: getattr(streamer, f.name) for f in dataclasses.fields(streamer)
        }
        self.output_streamer: SchedulerOutputStreamer = NewsStreamer(
            **{**parts, "disaggregation_mode": DisaggregationMode.NULL}
        )

    def receive(self, handover: Handover) -> None:
        """Adopt a request: upstream builds it anew, then ``AdoptionQueue.add``."""
        handover = dataclasses.replace(handover, received_at=time.monotonic())
        request = handover.request
        request.bootstrap_host, request.bootstrap_room = "semi-pd", 1
        self._handovers[request.rid] = handover
        self.handle_generate_request(request)

    def adopt(self, req: Req) -> None:
        """Let ``req`` have what its handover brought."""
        handover = self._handovers.pop(req.rid)
        label = row_label(req.rid, handover.loan.number)
        row = find_row(self.memory.table, label, self.give_back)
        adopt(req, handover, row)
        req.semi_pd_borrowed = Borrowed(handover.loan, handover.is_settled)
        req.semi_pd_adoption = handover, time.monotonic()

    def give_back(self) -> None:
        """Give ended requests back to prefill, as far as forwards allow."""
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
        self._room = RoomRequest(self.memory.table, send, self.agree, generation)
        if isinstance(self.tree_cache, BorrowingCache):
            self.tree_cache.give_back()
            self.tree_cache.turn_to(generation, send)
        return socket

    def _has_last_handover(self, _: LastHandover) -> None:
        self._prefill_has_left = True

    def may_leave(self) -> bool:
        return self._prefill_has_left

    def give_all(self, successor: int) -> list[str]:
        """Every request goes on in the next decode worker, but for those put aside."""
        queue = self.disagg_decode_prealloc_queue
        running = [req for req in self.running_batch.reqs if not req.finished()]
        going = [*running, *self.waiting_queue, *queue.adopted]
        handovers = [_passed_on(req) for req in going]
        handovers += self._handovers.values()  # their grammars are being compiled
        self.return_unused()
        table = self.memory.table
        heir = table.slot_of(InstanceRole.DECODE, successor)
        table.inherit(self.memory.manifest.slot, heir)
        if self.spec.tp_rank == 0:
            socket = socket_of(handover_address(self.spec.run_directory, successor))
            for handover in handovers:
                sock_send(socket, handover)
            for req in going:
                if req.to_finish is not None:
                    sock_send(socket, AbortReq(rid=req.rid))
            flush(socket)
        if self._to_lender is not None:
            flush(self._to_lender)
        return [req.rid for req in queue.retracted_queue]

    def on_end(self) -> None:
        """Leave in the log how long handovers took."""
        logger.info("Handovers took, P50 / P99 in ms: %s", self.handover_times)

    def abort_request(self, recv_req: AbortReq) -> None:
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
        pages = self.memory.table.layout.num_pages
        self._reserve = min(DECODE_RESERVE_PAGES, pages // LARGEST_RESERVE_SHARE)
        self._to_lender = self._use_lender(self.spec.generation)

    def process_decode_queue(self) -> None:
        self.give_back()
        queue = self.disagg_decode_prealloc_queue
        allocator = self.token_to_kv_pool_allocator
        steps_ahead = 2 * (self.running_batch.batch_size() + len(self.waiting_queue))
        to_resume = queue.tokens_to_resume // allocator.page_size
        allocator.demand_pages = steps_ahead + to_resume + MIN_LEASE_PAGES
        self.waiting_queue.extend(queue.resume_retracted_reqs())
        adopted = queue.pop_adopted()
        for req in adopted:
            self.handover_times.joined(*req.semi_pd_adoption)
        self.waiting_queue.extend(adopted)
        self._keep_reserve()
        self._ask_for_room_ahead(to_resume)

    def get_next_disagg_decode_batch_to_run(
        self, running_batch: ScheduleBatch
    ) -> NextBatchPlan:
        """As upstream, but before a request is put aside prefill is asked to evict."""
        missing = self._missing_pages(running_batch)
        if not missing:
            self._room.satisfied()
        elif self._room.must_wait(missing, is_last=running_batch.batch_size() < 2):
            return NextBatchPlan(batch_to_run=None, running_batch=running_batch)
        return super().get_next_disagg_decode_batch_to_run(running_batch)

    def on_idle(self) -> None:
        # A batch that waits for memory is no reason to give back what there is.
        if self.running_batch.is_empty():
            super().on_idle()

    def return_unused(self) -> None:
        self.give_back()
        super().return_unused()

    def _missing_pages(self, running_batch: ScheduleBatch) -> int:
        """Pages that the next step needs and that cannot be leased."""
        allocator = self.token_to_kv_pool_allocator
        reqs = (*running_batch.reqs, *self.waiting_queue)
        if allocator.lease(len(reqs)):
            return 0  # one for each: no need to count who fills a page
        needed = sum(
            req.kv_committed_len % allocator.page_size == 0
            for req in reqs
            if not req.finished()
        )
        return max(0, needed - allocator.leased_pages)

    def _keep_reserve(self) -> None:
        """While requests run prefill may not take the last pages: decode would have to
        put some aside. When none does, a prompt may be as large as the pool."""
        has_work = self.waiting_queue or not self.running_batch.is_empty()
        queue = self.disagg_decode_prealloc_queue
        wanted = self._reserve if has_work or queue.retracted_queue else 0
        table, slot = self.memory.table, self.memory.manifest.slot
        if table.reserve_of(slot) != wanted:  # also what a predecessor left
            table.set_reserve(slot, wanted)

    def _ask_for_room_ahead(self, to_resume: int) -> None:
        """Keep the reserve free while requests run: prefill evicts beside its work."""
        if self.running_batch.is_empty() and not to_resume:
            return
        allocator = self.token_to_kv_pool_allocator
        wanted = max(self._reserve, allocator.demand_pages)
        there = self.memory.table.pages_free + allocator.leased_pages
        self._room.ask_ahead(wanted - there)


def _passed_on(req: Req) -> Handover:
    """A running request on its way to the next decode worker; its loan stays."""
    borrowed: Borrowed = req.semi_pd_borrowed
    return handover_of(req, borrowed.loan, is_settled=borrowed.is_settled)
