# SPDX-License-Identifier: Apache-2.0
"""The next prefill worker has the prefix cache, and computes what this one has not.

A worker that is told to leave begins nothing more, and says at once what it has not
begun: its successor computes that, while the last batches of this one are computed.
Except of what the prefix cache has much: that waits until the successor has the cache.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import torch
from sglang.semi_pd.workers.arrivals import Arrivals
from sglang.semi_pd.workers.early_conclusion import EarlyConclusion
from sglang.semi_pd.workers.handover import HandoverSender
from sglang.semi_pd.workers.prefill_steps import STEP, PrefillSteps
from sglang.semi_pd.workers.succession import bequeath, inherit, recover
from sglang.semi_pd.workers.succession_messages import (
    Heritage,
    LastGiveBack,
    Leave,
    NotBegun,
    Recover,
    Resume,
)
from sglang.srt.managers.schedule_batch import NextBatchPlan
from sglang.srt.mem_cache.common import release_kv_cache
from sglang.utils import TypeBasedDispatcher

if TYPE_CHECKING:
    from sglang.semi_pd.workers.lender import Lender
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

logger = logging.getLogger(__name__)


class PrefillSuccession(EarlyConclusion):
    """Both ends of a switch, of the prefill scheduler."""

    waiting_queue: list[Req]
    _arrivals: Arrivals
    _handovers: HandoverSender
    _lender: Lender

    def init_disaggregation(self) -> None:
        super().init_disaggregation()
        self._decode_turned_away = False
        self._steps = PrefillSteps.of(self)

    def init_request_dispatcher(self) -> None:
        super().init_request_dispatcher()
        self._request_dispatcher += TypeBasedDispatcher(
            [
                (LastGiveBack, self._has_last_give_back),
                (Heritage, self.inherit),
                (Recover, self.recover),
                (Resume, self.resume),
            ]
        )

    # The old worker

    def _leave_soon(self, message: Leave) -> None:
        """What it has not begun is for its successor, which need not wait for more."""
        super()._leave_soon(message)
        self.waiting_queue += self.disagg_prefill_bootstrap_queue.pop_bootstrapped()
        kept = [req for req in self.waiting_queue if self._has_much_of(req)]
        rids = [req.rid for req in self.waiting_queue if req not in kept]
        self.waiting_queue = kept
        if rids:
            self.ipc_channels.send_to_detokenizer.send_output(NotBegun(rids))

    def _has_much_of(self, req: Req) -> bool:
        """Whether it takes less time to wait for the prefix cache to be passed on."""
        req.init_next_round_input(self.tree_cache)
        return len(req.prefix_indices) > STEP

    def _has_last_give_back(self, _: LastGiveBack) -> None:
        self._decode_turned_away = True

    def may_leave(self) -> bool:
        return self._decode_turned_away

    def get_next_disagg_prefill_batch_to_run(
        self, running_batch: ScheduleBatch, last_batch: ScheduleBatch | None
    ) -> NextBatchPlan:
        if self._leave is not None:  # decode has not turned away yet
            return NextBatchPlan(batch_to_run=None, running_batch=running_batch)
        return super().get_next_disagg_prefill_batch_to_run(running_batch, last_batch)

    def give_all(self, successor: int) -> list[str]:
        """Hand finished prompts to the next decode worker; the others begin again."""
        began = time.monotonic()
        spec, table, rows = self.spec, self.memory.table, self.req_to_token_pool
        left = self._handovers
        self._handovers = HandoverSender(spec, successor, rows, table, left.sent)
        self.process_disagg_prefill_inflight_queue()
        left.conclude()
        self._handovers.close()
        queue = self.disagg_prefill_bootstrap_queue
        self.waiting_queue.extend(queue.pop_bootstrapped())
        if self.chunked_req is not None:
            release_kv_cache(self.chunked_req, self.tree_cache)
            self.waiting_queue.append(self.chunked_req)
        unfinished = [req.rid for req in self.waiting_queue]
        # What was freed just now is copied to the host by the device.
        torch.get_device_module(self.device).synchronize()
        self.return_unused()
        assert self.token_to_kv_pool_allocator.held_pages() is not None, "all is given"
        lent = self._lender.still_lent()
        bequeath(spec, successor, self.tree_cache, table, lent, ranks=self.ranks)
        logger.info("Gave all away in %.0f ms", 1e3 * (time.monotonic() - began))
        return [*unfinished, *self._arrivals.rids]

    # The new one

    def recover(self, message: Recover) -> None:
        """Keep the KV of running requests of dead generations, free the rest."""
        table, rows = self.memory.table, self.req_to_token_pool
        recover(message, table, self.tree_cache, rows, ranks=self.ranks)

    def resume(self, message: Resume) -> None:
        """Take a request on that another worker had; its client has some tokens."""
        self._arrivals.resume(message)
        self.handle_generate_request(message.request)

    def inherit(self, message: Heritage) -> None:
        """Have the predecessor's prefix cache, as far as it says anything new."""
        began = time.monotonic()
        inherit(message, self.tree_cache, self.memory.table, self.ranks.rank)
        self._lender.has_heritage(message.lent)
        took_ms = 1e3 * (time.monotonic() - began)
        count = len(message.paths_by_rank[0])
        logger.info("Inherited %d cached sequences in %.0f ms", count, took_ms)
