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
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sglang.semi_pd.workers.handover import HandoverSender, no_transfer
from sglang.semi_pd.workers.worker_scheduler import WorkerScheduler
from sglang.srt.disaggregation.prefill import PrefillBootstrapQueue
from sglang.srt.managers.io_struct import AbortReq, TokenizedGenerateReqInput
from sglang.srt.managers.schedule_batch import FINISH_ABORT, Req
from sglang.srt.mem_cache.common import release_kv_cache

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import NextBatchPlan, ScheduleBatch
    from sglang.srt.managers.scheduler_components.load_inquirer import (
        SchedulerLoadInquirer,
    )


logger = logging.getLogger(__name__)


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


class PrefillScheduler(WorkerScheduler):
    """Computes prompts and hands each request over with its first token."""

    queue_replacement = {
        "sglang.srt.disaggregation.prefill.PrefillBootstrapQueue": ReadyQueue
    }

    def init_disaggregation(self) -> None:
        super().init_disaggregation()
        self._arriving: dict[str, TokenizedGenerateReqInput] = {}
        self._handovers = HandoverSender(
            self.spec.handover_address, self.req_to_token_pool, self.memory.table
        )

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
        super()._add_request_to_queue(req, is_retracted)

    def get_next_disagg_prefill_batch_to_run(
        self, running_batch: ScheduleBatch, last_batch: ScheduleBatch | None
    ) -> NextBatchPlan:
        allocator = self.token_to_kv_pool_allocator
        allocator.demand_pages = self._pages_wanted()
        plan = super().get_next_disagg_prefill_batch_to_run(running_batch, last_batch)
        if plan.batch_to_run is None:
            self.return_unused()
        return plan

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

    def flush_cache(self, empty_cache: bool = True) -> bool:  # noqa: FBT001
        # Idle means both workers: a request that decode runs still has its row.
        self.return_unused()
        if any(self.memory.table.usage().rows_by_slot.values()):
            logger.warning("Cache not flushed: requests are still being decoded")
            return False
        return super().flush_cache(empty_cache)

    def _conclude(self, req: Req) -> None:
        if req.to_finish is not None:
            req.finished_reason, req.to_finish = req.to_finish, None
        if isinstance(req.finished_reason, FINISH_ABORT):
            release_kv_cache(req, self.tree_cache)
            req.time_stats.set_completion_time()
            self.output_streamer.stream_output([req], req.return_logprob, None)
        else:
            self._handovers.hand_over(req)
