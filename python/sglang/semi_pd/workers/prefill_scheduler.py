# SPDX-License-Identifier: Apache-2.0
"""The prefill worker: SGLang's scheduler in its disaggregated prefill role.

Upstream's role sends KV to another machine and waits for it to arrive. Here KV is where
decode will read it, so a request is ready as soon as it arrives, no chunk is ever sent,
and after the last chunk the request, its row and its pages are handed over.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from sglang.semi_pd.memory.block_table import Answer
from sglang.semi_pd.workers import prefix_tree
from sglang.semi_pd.workers.continuation import (
    accept_by_grammar,
    continue_from,
    count_penalties,
    pad_logprobs,
)
from sglang.semi_pd.workers.early_conclusion import EarlyConclusion
from sglang.semi_pd.workers.handover import HandoverSender, no_transfer
from sglang.semi_pd.workers.lender import Lender
from sglang.semi_pd.workers.messages import (
    GiveBack,
    Heritage,
    LastGiveBack,
    MakeRoom,
    Recover,
    Resume,
)
from sglang.semi_pd.workers.succession import bequeath, inherit, recover
from sglang.semi_pd.workers.worker_scheduler import BATCH
from sglang.srt.disaggregation.prefill import PrefillBootstrapQueue
from sglang.srt.managers.io_struct import (
    AbortReq,
    FlushCacheReqInput,
    TokenizedGenerateReqInput,
)
from sglang.srt.managers.schedule_batch import FINISH_ABORT, Req
from sglang.srt.mem_cache.base_prefix_cache import EvictParams
from sglang.srt.mem_cache.common import release_kv_cache
from sglang.utils import TypeBasedDispatcher

if TYPE_CHECKING:
    from sglang.semi_pd.memory.id_pool import Ids
    from sglang.srt.managers.schedule_batch import NextBatchPlan, ScheduleBatch
    from sglang.srt.managers.scheduler_components.load_inquirer import (
        SchedulerLoadInquirer,
    )


logger = logging.getLogger(__name__)

FLUSH_PATIENCE = 1000
"""Iterations of the loop that a flush waits for requests that have just ended; counted,
not timed, because all ranks have to give up together."""

AHEAD_SHARE = 16
"""At most a sixteenth of the pool is kept ready for the next batch."""


class ReadyQueue(PrefillBootstrapQueue):
    """Upstream's queue of requests that wait for a decode server; here none waits."""

    def _init_kv_manager(self) -> None:  # type: ignore[override]
        return None

    def create_sender(self, req: Req, num_kv_heads: int) -> bool:
        if self._check_if_req_exceed_kv_capacity(req):
            return False
        self._process_req(req)
        req.disagg_kv_sender = no_transfer
        req.metadata_buffer_index = 0
        return True

    def pop_bootstrapped(self, *_: Any, **__: Any) -> list[Req]:  # type: ignore[override]
        ready: list[Req] = self.queue
        self.queue: list[Req] = []
        for req in ready:
            req.time_stats.set_bootstrap_done_time()
            req.time_stats.set_wait_queue_entry_time()
        return ready


def count_continued(original: Callable[[Any], None], batch: ScheduleBatch) -> None:
    """Penalties know what a resumed request generated before it came here."""
    original(batch)
    count_penalties(batch, newest_left_out=0)


class PrefillScheduler(EarlyConclusion):
    """Computes prompts and hands each request over with its first token."""

    queue_replacement = {
        "sglang.srt.disaggregation.prefill.PrefillBootstrapQueue": ReadyQueue
    }
    around = {f"{BATCH}.prepare_for_extend": count_continued}

    def init_disaggregation(self) -> None:
        super().init_disaggregation()
        self._arriving: dict[str, TokenizedGenerateReqInput] = {}
        table, rows = self.memory.table, self.req_to_token_pool
        self._continued: dict[str, list[int]] = {}
        self._decode_turned_away = False
        self._handovers = HandoverSender(self.spec, self.spec.generation, rows, table)
        self._lender = Lender(self.tree_cache, rows, table, self.spec.generation)
        self._held_flushes: list[FlushCacheReqInput] = []
        self._patience = 0

    def init_ipc_channels(self, port_args: Any) -> None:
        super().init_ipc_channels(port_args)
        if self.recv_from_tokenizer is not None:
            # One socket for both senders, as decode has it.
            self.recv_from_tokenizer.bind(self.spec.give_back_address)

    def init_request_dispatcher(self) -> None:
        super().init_request_dispatcher()
        self._request_dispatcher += TypeBasedDispatcher(
            [
                (GiveBack, lambda message: self._lender.take_back(message)),
                (MakeRoom, self.make_room),
                (LastGiveBack, self._has_last_give_back),
                (Heritage, self.inherit),
                (Recover, self.recover),
                (Resume, self.resume),
            ]
        )

    # Predecessors and successors

    def recover(self, message: Recover) -> None:
        """Keep the KV of running requests of dead generations, free the rest."""
        recover(message, self.memory.table, self.tree_cache, self.req_to_token_pool)

    def resume(self, message: Resume) -> None:
        """Take a request on that another worker had; its client has some tokens."""
        self._continued[message.request.rid] = message.output_ids
        self.handle_generate_request(message.request)

    def inherit(self, message: Heritage) -> None:
        """Have the predecessor's prefix cache, as far as it says anything new."""
        inherit(message, self.tree_cache, self.memory.table)

    def _has_last_give_back(self, _: LastGiveBack) -> None:
        self._decode_turned_away = True

    def may_leave(self) -> bool:
        return self._decode_turned_away

    def give_all(self, successor: int) -> list[str]:
        """Hand finished prompts to the next decode worker; the others begin again."""
        spec, table, rows = self.spec, self.memory.table, self.req_to_token_pool
        left = self._handovers
        self._handovers = HandoverSender(spec, successor, rows, table)
        self.process_disagg_prefill_inflight_queue()
        left.conclude()
        self._handovers.close()
        queue = self.disagg_prefill_bootstrap_queue
        self.waiting_queue.extend(queue.pop_bootstrapped())
        if self.chunked_req is not None:
            release_kv_cache(self.chunked_req, self.tree_cache)
            self.waiting_queue.append(self.chunked_req)
        unfinished = [req.rid for req in self.waiting_queue]
        self.return_unused()
        bequeath(spec, successor, self.tree_cache, table)
        return [*unfinished, *self._arriving]

    def init_load_inquirer(self) -> None:
        super().init_load_inquirer()
        # Upstream's prefill role reports no running requests: it runs none to the end.
        inquirer: SchedulerLoadInquirer = self.load_inquirer
        self.load_inquirer: SchedulerLoadInquirer = dataclasses.replace(
            inquirer, get_running_batch=self._being_computed
        )

    def _being_computed(self) -> SimpleNamespace:
        """Requests in the batches that are launched and not concluded."""
        batches = [self.cur_batch_for_debug]
        if self.enable_overlap:
            batches.append(self.last_batch)
        reqs = {req.rid: req for batch in filter(None, batches) for req in batch.reqs}
        return SimpleNamespace(reqs=list(reqs.values()))

    def handle_generate_request(self, recv_req: TokenizedGenerateReqInput) -> None:
        # Upstream's prefill role limits max_new_tokens to 1 in place.
        original = copy.copy(recv_req)
        recv_req.sampling_params = copy.copy(recv_req.sampling_params)
        recv_req.bootstrap_host, recv_req.bootstrap_room = "semi-pd", 1
        self._arriving[recv_req.rid] = original
        super().handle_generate_request(recv_req)

    def _add_request_to_queue(
        self,
        req: Req,
        is_retracted: bool = False,  # noqa: FBT001 - upstream's signature
    ) -> None:
        req.semi_pd_request = self._arriving.pop(req.rid, None)
        output_ids = self._continued.pop(req.rid, [])
        continue_from(req, output_ids, sent_tokens=len(output_ids))
        pad_logprobs(req)
        accept_by_grammar(req, output_ids)
        super()._add_request_to_queue(req, is_retracted)

    def get_next_disagg_prefill_batch_to_run(
        self, running_batch: ScheduleBatch, last_batch: ScheduleBatch | None
    ) -> NextBatchPlan:
        allocator = self.token_to_kv_pool_allocator
        allocator.demand_pages = self._pages_wanted()
        plan = super().get_next_disagg_prefill_batch_to_run(running_batch, last_batch)
        if plan.batch_to_run is None:
            self.return_unused()
        else:
            self._evict_ahead()
        self._publish_held()
        return plan

    def process_input_requests(self, recv_reqs: list[Any]) -> None:
        # What has ended must not be in the way of a flush that was asked for later: it
        # is on its way back, at the latest when decode's running forward ends.
        given_back = [one for one in recv_reqs if isinstance(one, GiveBack)]
        if given_back:
            super().process_input_requests(given_back)
        others = [one for one in recv_reqs if not isinstance(one, GiveBack)]
        flushes = [one for one in others if isinstance(one, FlushCacheReqInput)]
        if flushes and self._lender.loans:
            self._held_flushes += flushes
            self._patience = FLUSH_PATIENCE
            others = [one for one in others if one not in flushes]
        self._patience -= 1
        if self._held_flushes and not (self._lender.loans and self._patience > 0):
            others = self._held_flushes + others
            self._held_flushes = []
        super().process_input_requests(others)

    def on_idle(self) -> None:
        if not self._held_flushes:  # else it might go to sleep
            super().on_idle()

    def make_room(self, message: MakeRoom) -> None:
        """Evict for decode; answer when it can have the pages."""
        is_busy = self.chunked_req is not None or self.last_batch is not None

        def answer() -> None:
            if message.sequence:
                self.memory.table.publish_answer(Answer(message.sequence, is_busy))

        allocator = self.token_to_kv_pool_allocator
        with allocator.promising(answer):
            self._evict(message.pages)
        allocator.publish_retired()

    def _evict(self, pages: int) -> None:
        """Evict, but nothing that the rest of a prompt was admitted for."""
        page_size = self.token_to_kv_pool_allocator.page_size
        spare = self.tree_cache.evictable_size() - self._pages_owed() * page_size
        tokens = min(pages * page_size, spare)
        if tokens > 0:
            self.tree_cache.evict(EvictParams(num_tokens=tokens))

    def _pages_owed(self) -> int:
        """Pages that the rest of the current prompt needs and that are not leased."""
        if self.chunked_req is None:
            return 0
        allocator = self.token_to_kv_pool_allocator
        pages = len(self.chunked_req.origin_input_ids) // allocator.page_size + 2
        return max(0, pages - allocator.leased_pages)

    def _evict_ahead(self) -> None:
        """While this batch runs, free pages for the next: the copy of their numbers to
        the host would otherwise wait for it."""
        allocator = self.token_to_kv_pool_allocator
        pages = self._pages_ahead - allocator.retiring_pages
        if self._lender.lends and not allocator.lease(pages):
            self._evict(pages - allocator.leased_pages)

    @property
    def _pages_ahead(self) -> int:
        """Pages to have ready for the next batch."""
        allocator = self.token_to_kv_pool_allocator
        chunk = (self.chunked_prefill_size or 0) // allocator.page_size
        return min(chunk, self.memory.table.layout.num_pages // AHEAD_SHARE)

    def _publish_held(self) -> None:
        allocator = self.token_to_kv_pool_allocator
        self.memory.table.publish_held(
            leased=allocator.leased_pages,
            cached=self.tree_cache.evictable_size() // allocator.page_size,
        )

    def _pages_wanted(self) -> int:
        """Pages for all prompts that wait, one page of slack each."""
        waiting = [*self.waiting_queue, *filter(None, [self.chunked_req])]
        page_size = self.token_to_kv_pool_allocator.page_size
        return sum(len(r.origin_input_ids) // page_size + 2 for r in waiting)

    def resolve_waiting_queue_bootstrap(self) -> None:
        """Nothing to resolve: no request waits for another server."""

    def maybe_send_cached_prefix_chunk(self, req: Req) -> None:
        """As ``send_kv_chunk``."""

    def send_kv_chunk(
        self,
        req: Req,
        last_chunk: bool = False,  # noqa: FBT001 - upstream's signature
        end_idx: int | None = None,
    ) -> None:
        """Nothing to send: decode reads the pages that were written."""

    def process_disagg_prefill_inflight_queue(
        self, rids_to_check: list[str] | None = None
    ) -> list[Req]:
        """Conclude every request whose prompt has been computed."""
        done: list[Req] = self.disagg_prefill_inflight_queue
        self.disagg_prefill_inflight_queue: list[Req] = []
        for req in done:
            self._conclude(req)
        return done

    def abort_request(self, recv_req: AbortReq) -> None:
        # The queue of arrivals is emptied first: upstream expects what it finds there
        # to be aborted by a transfer engine.
        self.waiting_queue.extend(
            self.disagg_prefill_bootstrap_queue.pop_bootstrapped()
        )
        super().abort_request(recv_req)
        # A request that has just left is found by decode: same pipe, same order.
        self._handovers.forward(recv_req)

    def known_pages(self) -> Ids | None:
        held = super().known_pages()
        if held is None or self._lender.loans:
            return None
        return np.concatenate((held, prefix_tree.cached_pages(self.tree_cache)))

    def flush_cache(self, empty_cache: bool = True) -> bool:  # noqa: FBT001
        # Idle means both workers: a request that decode runs still has its row.
        self.return_unused()
        if any(self.memory.table.usage().rows_by_slot.values()):
            logger.warning("Cache not flushed: requests are still being decoded")
            return False
        if self._lender.lends and self.is_fully_idle():
            self._evict(self.memory.table.layout.num_pages)
        return super().flush_cache(empty_cache)

    def _conclude(self, req: Req) -> None:
        if req.to_finish is not None:
            req.finished_reason, req.to_finish = req.to_finish, None
        if isinstance(req.finished_reason, FINISH_ABORT):
            release_kv_cache(req, self.tree_cache)
            req.time_stats.set_completion_time()
            self.output_streamer.stream_output([req], req.return_logprob, None)
        else:
            shared_tokens = req.cache_protected_len if self._lender.lends else 0
            self._lender.lend(req, self._handovers.hand_over(req, shared_tokens))
