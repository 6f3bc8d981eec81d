# SPDX-License-Identifier: Apache-2.0
"""The prefill worker: SGLang's scheduler in its disaggregated prefill role.

Upstream's role sends KV to another machine and waits for it to arrive. Here KV is where
decode will read it, so a request is ready as soon as it arrives, no chunk is ever sent,
and after the last chunk the request, its row and its pages are handed over.
"""

from __future__ import annotations

import dataclasses
import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from sglang.semi_pd.workers import prefill_adder, prefix_tree
from sglang.semi_pd.workers.arrivals import Arrivals
from sglang.semi_pd.workers.handover import HandoverSender
from sglang.semi_pd.workers.held_flushes import HeldFlushes
from sglang.semi_pd.workers.lender import Lender, note_rewriting
from sglang.semi_pd.workers.messages import GiveBack, MakeRoom
from sglang.semi_pd.workers.penalties import count_continued
from sglang.semi_pd.workers.prefill_room import PrefillRoom
from sglang.semi_pd.workers.prefill_succession import PrefillSuccession
from sglang.semi_pd.workers.ready_queue import ReadyQueue
from sglang.semi_pd.workers.worker_scheduler import BATCH
from sglang.srt.managers.io_struct import AbortReq, TokenizedGenerateReqInput
from sglang.srt.managers.schedule_batch import FINISH_ABORT, NextBatchPlan, Req
from sglang.srt.managers.scheduler_components.flush_wrapper import SchedulerFlushWrapper
from sglang.srt.mem_cache.common import release_kv_cache
from sglang.utils import TypeBasedDispatcher

if TYPE_CHECKING:
    from sglang.semi_pd.memory.id_pool import Ids
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.managers.scheduler_components.load_inquirer import (
        SchedulerLoadInquirer,
    )


logger = logging.getLogger(__name__)


class PrefillScheduler(PrefillSuccession):
    """Computes prompts and hands each request over with its first token."""

    chunked_prefill_size: int | None

    queue_replacement = {
        "sglang.srt.disaggregation.prefill.PrefillBootstrapQueue": ReadyQueue
    }
    around = {
        f"{BATCH}.prepare_for_extend": count_continued,
        "sglang.srt.mem_cache.radix_cache.RadixCache.cache_unfinished_req": (
            note_rewriting
        ),
        **prefill_adder.HOOKS,
    }

    def init_disaggregation(self) -> None:
        super().init_disaggregation()
        table, rows = self.memory.table, self.req_to_token_pool
        self._arrivals = Arrivals()
        self._held_flushes = HeldFlushes()
        self._handovers = HandoverSender(self.spec, self.spec.generation, rows, table)
        self._lender = Lender(self.tree_cache, rows, table, self.spec.generation)
        self._room = PrefillRoom(
            self.tree_cache,
            self.token_to_kv_pool_allocator,
            table,
            self._steps.largest if self._steps is not None else 0,
        )

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
            ]
        )

    def init_load_inquirer(self) -> None:
        super().init_load_inquirer()
        # Upstream's prefill role reports no running requests: it runs none to the end.
        inquirer: SchedulerLoadInquirer = self.load_inquirer
        self.load_inquirer: SchedulerLoadInquirer = dataclasses.replace(
            inquirer, get_running_batch=self._being_computed
        )

    def init_running_status(self) -> None:
        super().init_running_status()
        # A flush that may wait, waits for both workers.
        self.flush_wrapper = SchedulerFlushWrapper(
            flush_cache=self.flush_cache,
            is_fully_idle=self._are_both_idle,
            ipc_channels=self.ipc_channels,
        )

    def _being_computed(self) -> SimpleNamespace:
        """Requests in the batches that are launched and not concluded."""
        batches = [self.cur_batch_for_debug]
        if self.enable_overlap:
            batches.append(self.last_batch)
        reqs = {req.rid: req for batch in filter(None, batches) for req in batch.reqs}
        return SimpleNamespace(reqs=list(reqs.values()))

    def handle_generate_request(self, recv_req: TokenizedGenerateReqInput) -> None:
        self._arrivals.note(recv_req)
        recv_req.bootstrap_host, recv_req.bootstrap_room = "semi-pd", 1
        super().handle_generate_request(recv_req)

    def _add_request_to_queue(
        self,
        req: Req,
        is_retracted: bool = False,  # noqa: FBT001 - upstream's signature
    ) -> None:
        is_resumed = self._arrivals.complete(req)
        if is_resumed or not self._is_one_too_many(req):
            super()._add_request_to_queue(req, is_retracted)

    def _is_one_too_many(self, req: Req) -> bool:
        """Whether ``req`` was turned away by ``--max-queued-requests``.

        Upstream asks only where it serves alone. What another worker had is not asked
        for here: it was let in before.
        """
        ready = self.disagg_prefill_bootstrap_queue.pop_bootstrapped()
        self.waiting_queue.extend(ready)  # where upstream counts
        if not self._set_or_validate_priority(req):
            return True
        refused: bool = self._abort_on_queued_limit(req)
        return refused

    def get_next_disagg_prefill_batch_to_run(
        self, running_batch: ScheduleBatch, last_batch: ScheduleBatch | None
    ) -> NextBatchPlan:
        prompts = [*self.waiting_queue, *filter(None, [self.chunked_req])]
        self._room.demand(prompts)
        plan = super().get_next_disagg_prefill_batch_to_run(running_batch, last_batch)
        if plan.batch_to_run is None:
            self.return_unused()
        else:
            self._room.evict_ahead(self.chunked_req)
        self._room.publish_held()
        return plan

    def run_batch(self, batch: ScheduleBatch, *args: Any, **options: Any) -> Any:
        result = super().run_batch(batch, *args, **options)
        for req in batch.reqs:
            if req is not self.chunked_req:  # there is nothing left of it to compute
                self._handovers.announce(req)
        return result

    def get_new_batch_prefill(self, running_batch: ScheduleBatch) -> NextBatchPlan:
        """As upstream, but beside a prompt under way only those that fit in whole.

        That one may find no room for its next chunk, when another prompt uses the
        prefixes that it counted on. Upstream computes it regardless and ends for want
        of memory.
        """
        req, waiting = self.chunked_req, self.waiting_queue
        if self._steps is None or (req is None and not waiting):
            return super().get_new_batch_prefill(running_batch)
        if req is not None:  # upstream sorts only those that are to join it
            self.policy.calc_priority(waiting, running_batch)
        step = self._steps.next(req, waiting, self.tree_cache)
        self.chunked_prefill_size = step.tokens
        if req is None:
            return super().get_new_batch_prefill(running_batch)
        if not self._room.has_room_for(step.under_way):
            if self.last_batch is None:  # none of it is being computed
                self._put_back(req)
            return NextBatchPlan(batch_to_run=None, running_batch=running_batch)
        req.semi_pd_step = step.under_way
        self.waiting_queue = [waiting[place] for place in sorted(step.joining)]
        plan = super().get_new_batch_prefill(running_batch)
        self.waiting_queue = step.put_back(waiting, self.waiting_queue)
        if plan.batch_to_run is not None:  # upstream has counted those that might join
            pending = sum(one.seqlen for one in step.aside(waiting))
            plan.batch_to_run.prefill_stats.num_pending_tokens += pending
        return plan

    def _put_back(self, req: Req) -> None:
        """It waits to be admitted again; what there is of it is cached, for all."""
        logger.info("No room for the rest of a prompt: it waits (%s)", req.rid)
        self.chunked_req = None
        release_kv_cache(req, self.tree_cache)
        req.reset_for_retract()
        req.time_stats.set_wait_queue_entry_time()
        self.waiting_queue.insert(0, req)

    def process_input_requests(self, recv_reqs: list[Any]) -> None:
        # What has ended must not be in the way of a flush that was asked for later: it
        # is on its way back, at the latest when decode's running forward ends.
        given_back = [one for one in recv_reqs if isinstance(one, GiveBack)]
        if given_back:
            super().process_input_requests(given_back)
        others = [one for one in recv_reqs if not isinstance(one, GiveBack)]
        others = self._held_flushes.pass_on(others, is_lent=bool(self._lender.loans))
        super().process_input_requests(others)

    def on_idle(self) -> None:
        if not self._held_flushes:  # else it might go to sleep
            super().on_idle()

    def make_room(self, message: MakeRoom) -> None:
        """Evict for decode."""
        is_busy = self.chunked_req is not None or self.last_batch is not None
        self._room.evict_for_decode(message, self.chunked_req, is_busy=is_busy)

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
        if not self._are_both_idle():
            logger.warning("Cache not flushed: requests are still being served")
            return False
        if self._lender.lends:
            self._room.evict(self.memory.table.layout.num_pages, self.chunked_req)
        return super().flush_cache(empty_cache)

    def _are_both_idle(self) -> bool:
        """Whether nothing runs here, nor in decode, where each request has a row.

        With several ranks only what is the same on all of them counts, or one would
        flush alone: the rows of each change their owner at an instant of their own.
        """
        if self._lender.loans or not self.is_fully_idle():
            return False
        if self.ps.tp_size > 1:
            return True
        self.return_unused()
        return not any(self.memory.table.usage().rows_by_slot.values())

    def _conclude(self, req: Req) -> None:
        if req.to_finish is not None:
            req.finished_reason, req.to_finish = req.to_finish, None
        if isinstance(req.finished_reason, FINISH_ABORT):
            self._handovers.is_not_coming(req)
            release_kv_cache(req, self.tree_cache)
            req.time_stats.set_completion_time()
            self.output_streamer.stream_output([req], req.return_logprob, None)
        else:
            lends = self._lender.lends
            loan = self._handovers.hand_over(
                req,
                req.cache_protected_len if lends else 0,
                is_rewritten=getattr(req, "semi_pd_row_is_rewritten", False),
            )
            self._lender.lend(req, loan)
