# SPDX-License-Identifier: Apache-2.0
"""Where prompts arrive at prefill; upstream lets them wait there for another server."""

from __future__ import annotations

from typing import Any

from sglang.semi_pd.workers.handover import no_transfer
from sglang.srt.disaggregation.prefill import PrefillBootstrapQueue
from sglang.srt.managers.schedule_batch import Req


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
