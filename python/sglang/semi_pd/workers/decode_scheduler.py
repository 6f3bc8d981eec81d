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
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from sglang.semi_pd.workers.handover import adopt
from sglang.semi_pd.workers.messages import Handover
from sglang.semi_pd.workers.worker_scheduler import WorkerScheduler
from sglang.srt.disaggregation.decode import DecodePreallocQueue
from sglang.srt.disaggregation.utils import DisaggregationMode
from sglang.srt.managers.io_struct import GetInternalStateReq
from sglang.srt.managers.schedule_batch import Req
from sglang.utils import TypeBasedDispatcher

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.managers.scheduler_components.output_streamer import (
        SchedulerOutputStreamer,
    )


logger = logging.getLogger(__name__)

HANDOVERS_REMEMBERED = 10_000

DECODE_RESERVE_PAGES = 4096
LARGEST_RESERVE_SHARE = 16
"""Free pages only decode may take: 4096, but at most a sixteenth of the pool."""

_BATCH = "sglang.srt.managers.schedule_batch.ScheduleBatch"

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
            adopt(req, self.scheduler.take_handover(req.rid))
            self.adopted.append(req)

    @property
    def tokens_to_resume(self) -> int:
        """Tokens that must be free for the first retracted request to run again."""
        if not self.retracted_queue:
            return 0
        running = self._active_reserved_tokens()
        return running + self._prealloc_required_tokens(self.retracted_queue[0])[0]

    def pop_adopted(self) -> list[Req]:
        """Requests that may join the batch: none while retracted ones wait."""
        if self.retracted_queue:
            return []
        adopted, self.adopted = self.adopted, []
        return adopted


def count_as_undivided(original: Callable[[Any], None], batch: ScheduleBatch) -> None:
    """Penalise the same tokens as one scheduler with overlap does.

    There the newest token is not known yet when the next step is prepared, so a
    request's first decode step counts the last token of its prompt. An adopted request
    knows its first token already and would count it twice.
    """
    fresh = [req for req in batch.reqs if req.decode_batch_idx == 0]
    known = [req.output_ids for req in fresh]
    for req in fresh:
        req.output_ids = req.output_ids[:0]
    try:
        original(batch)
    finally:
        for req, output_ids in zip(fresh, known, strict=True):
            req.output_ids = output_ids


class DecodeScheduler(WorkerScheduler):
    """Generates tokens for requests that the prefill worker hands over."""

    queue_replacement = {
        "sglang.srt.disaggregation.decode.DecodePreallocQueue": AdoptionQueue
    }
    around = {f"{_BATCH}.cumulate_penalty_output_tokens": count_as_undivided}

    def init_ipc_channels(self, port_args: Any) -> None:
        super().init_ipc_channels(port_args)
        self._handovers: dict[str, Handover] = {}
        self._handover_ms: deque[float] = deque(maxlen=HANDOVERS_REMEMBERED)
        if self.recv_from_tokenizer is not None:
            # One socket for both senders: handovers are then broadcast to all ranks
            # in one order with everything else, and wake a sleeping scheduler.
            self.recv_from_tokenizer.bind(self.spec.handover_address)

    def init_request_dispatcher(self) -> None:
        super().init_request_dispatcher()
        dispatcher: TypeBasedDispatcher = self._request_dispatcher
        dispatcher += TypeBasedDispatcher([(Handover, self.receive)])

        def dispatch(message: Any) -> Any:
            answer = dispatcher(message)
            # Of what both receive, prefill answers for both.
            return answer if isinstance(message, GetInternalStateReq) else None

        self._request_dispatcher: Callable[[Any], Any] = dispatch

    def init_output_streamer(self) -> None:
        super().init_output_streamer()
        # Upstream's decode role leaves the prompt's log-probabilities to prefill.
        streamer: SchedulerOutputStreamer = self.output_streamer
        self.output_streamer: SchedulerOutputStreamer = dataclasses.replace(
            streamer, disaggregation_mode=DisaggregationMode.NULL
        )

    def receive(self, handover: Handover) -> None:
        """Adopt a request: upstream builds it anew, then ``AdoptionQueue.add``."""
        request = handover.request
        request.bootstrap_host, request.bootstrap_room = "semi-pd", 1
        self._handovers[request.rid] = handover
        self._handover_ms.append(1e3 * (time.monotonic() - handover.handed_over_at))
        self.handle_generate_request(request)

    def take_handover(self, rid: str) -> Handover:
        """The handover that brought request ``rid``."""
        return self._handovers.pop(rid)

    def on_end(self) -> None:
        """Leave in the log how long handovers took, from hand to hand."""
        if self._handover_ms:
            p50, p99 = np.percentile(self._handover_ms, (50, 99))
            logger.info("Handovers took %.2f ms (P50), %.2f ms (P99)", p50, p99)

    def init_running_status(self) -> None:
        super().init_running_status()
        # Prefill may not take the last pages: decode would have to put requests aside.
        pages = self.memory.table.layout.num_pages
        reserve = min(DECODE_RESERVE_PAGES, pages // LARGEST_RESERVE_SHARE)
        self.memory.table.set_reserve(self.memory.manifest.slot, reserve)

    def process_decode_queue(self) -> None:
        queue = self.disagg_decode_prealloc_queue
        allocator = self.token_to_kv_pool_allocator
        steps_ahead = 2 * (self.running_batch.batch_size() + len(self.waiting_queue))
        to_resume = queue.tokens_to_resume // allocator.page_size
        allocator.demand_pages = steps_ahead + to_resume + MIN_LEASE_PAGES
        self.waiting_queue.extend(queue.resume_retracted_reqs())
        self.waiting_queue.extend(queue.pop_adopted())
