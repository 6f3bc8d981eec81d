# SPDX-License-Identifier: Apache-2.0
"""A prompt that the GPU has computed is handed over before the next batch is launched.

Upstream's overlap loop launches a batch and then looks at the result of the one before:
while the GPU is the slower of the two that costs nothing. But launching a batch of
short prompts takes longer than computing it; then a result lies there, and its first
tokens with it, for as long as the next launch takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sglang.semi_pd.workers.worker_scheduler import WorkerScheduler

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import NextBatchPlan, ScheduleBatch

CONCLUDED = None
"""Stands in the queue of results for one that has been processed."""


class EarlyConclusion(WorkerScheduler):
    """What the prefill scheduler does just before it forms a batch.

    Only with one rank: when a result is there is nothing that several would agree on.
    """

    def get_next_disagg_prefill_batch_to_run(
        self, running_batch: ScheduleBatch, last_batch: ScheduleBatch | None
    ) -> NextBatchPlan:
        if self.enable_overlap and last_batch and self.server_args.tp_size == 1:
            self._conclude_if_done()
        return super().get_next_disagg_prefill_batch_to_run(running_batch, last_batch)

    def process_batch_result(self, batch: ScheduleBatch, result: Any) -> None:
        if result is not CONCLUDED:
            super().process_batch_result(batch, result)

    def _conclude_if_done(self) -> None:
        batch, result = self.result_queue[0]
        done = getattr(result, "copy_done", None)
        if done is not None and done.query():
            self.process_batch_result(batch, result)
            self.process_disagg_prefill_inflight_queue()
            self.result_queue[0] = batch, CONCLUDED
