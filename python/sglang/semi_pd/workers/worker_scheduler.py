# SPDX-License-Identifier: Apache-2.0
"""What the prefill and the decode scheduler have in common."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import setproctitle
import torch
from sglang.semi_pd import long_lived
from sglang.semi_pd.partition.cpu_share import take_cores
from sglang.semi_pd.utils import END_SIGNAL
from sglang.semi_pd.workers.handover import flush
from sglang.semi_pd.workers.heartbeat import Heartbeat
from sglang.semi_pd.workers.idle_audit import IdleAudit
from sglang.semi_pd.workers.messages import TakeCores, TakeSMs
from sglang.semi_pd.workers.ranks import Ranks
from sglang.semi_pd.workers.succession_messages import HasLeft, Leave
from sglang.semi_pd.workers.worker_spec import EXIT_FAILED, WorkerSpec
from sglang.srt.managers.scheduler import Scheduler
from sglang.utils import TypeBasedDispatcher

if TYPE_CHECKING:
    from sglang.semi_pd.memory.id_pool import Ids
    from sglang.semi_pd.workers.green_forward import GreenForward
    from sglang.semi_pd.workers.resident_memory import ResidentMemory
    from sglang.semi_pd.workers.share_watch import ShareWatch
    from sglang.semi_pd.workers.stream_priority import ServingStream
    from sglang.srt.managers.schedule_batch import ScheduleBatch

logger = logging.getLogger(__name__)

BATCH = "sglang.srt.managers.schedule_batch.ScheduleBatch"


class WorkerScheduler(Scheduler):
    """SGLang's scheduler as one of two over the same memory.

    Attributes:
        spec, memory, forwards, enter, fail: set once per process, before the scheduler
            is made, for SGLang's constructor already builds pools and sockets with
            them. ``forwards``, on a GPU, is where the model runs, ``enter`` tells the
            main process what the start is at, ``fail`` why it failed.
        queue_replacement: upstream's queue class of the role, by dotted name, and the
            one to use in its place.
        around: further hooks of the role, by the dotted name of what they wrap.
    """

    spec: ClassVar[WorkerSpec]
    memory: ClassVar[ResidentMemory]
    forwards: ClassVar[GreenForward | ServingStream | None] = None
    enter: ClassVar[Callable[[str], None]]
    fail: ClassVar[Callable[[Exception], None]]
    queue_replacement: ClassVar[dict[str, type]]
    around: ClassVar[dict[str, Callable[..., Any]]] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        setproctitle.setproctitle(self.spec.title)
        self._leave: Leave | None = None
        self._heartbeat = Heartbeat(self.spec.heartbeat_path)
        try:
            super().__init__(*args, **kwargs)
        except Exception as error:
            type(self).fail(error)
            raise  # upstream logs it with its traceback
        self.share_watch: ShareWatch | None = None
        if str(self.device).startswith("cuda"):
            self._watch_share()
        # Ending between two iterations leaves the GPU idle, every page accounted for.
        signal.signal(END_SIGNAL, self._end_soon)

    def run_event_loop(self) -> None:
        """Serve; a failure ends this process alone.

        Upstream would end the server. After a CUDA error nothing may be sent, and a
        tidy end could hang.
        """
        long_lived.set_aside()
        try:
            super().run_event_loop()
        except Exception:
            logger.exception("%s failed", self.spec.title)
            logging.shutdown()
            os._exit(EXIT_FAILED)

    def init_request_dispatcher(self) -> None:
        super().init_request_dispatcher()
        self._request_dispatcher += TypeBasedDispatcher(
            [
                (TakeCores, lambda message: take_cores(message.cores)),
                (Leave, self._leave_soon),
                (TakeSMs, self._take_sms),
            ]
        )

    def init_all_cuda_graphs(self) -> None:
        if not self.server_args.disable_cuda_graph:
            type(self).enter("capturing graphs")
        super().init_all_cuda_graphs()

    def init_running_status(self) -> None:
        super().init_running_status()
        self._audit = IdleAudit(self.memory.table, self.known_pages)
        if self.ps.tp_size > 1:
            self.token_to_kv_pool_allocator.agree = self.agree
            self.req_to_token_pool.agree = self.agree

    @property
    def ranks(self) -> Ranks:
        """The other ranks that schedule the same."""
        return Ranks(self.spec.tp_rank, self.ps.tp_size, self.tp_cpu_group)

    def agree(self, count: int) -> int:
        """The smallest count of all ranks; all call it at the same point."""
        return self.ranks.least([count])[0]

    def _watch_share(self) -> None:
        assert self.forwards is not None, "set before the scheduler is made"
        self.forwards.attach(self)
        from sglang.semi_pd.workers.share_watch import ShareWatch

        device = torch.device(self.spec.device)
        self.share_watch = ShareWatch(device, self.spec.share_path, self.forwards.sms)

    def _take_sms(self, message: TakeSMs) -> None:
        from sglang.semi_pd.workers.green_forward import GreenForward

        green = self.forwards
        assert isinstance(green, GreenForward), "sent where green contexts are used"
        cpu_us = green.take(self, message.allocation)
        assert self.share_watch is not None
        self.share_watch.note_split(message.serial, green.sms, cpu_us)

    def _end_soon(self, *_: object) -> None:
        self.gracefully_exit = True

    def _leave_soon(self, message: Leave) -> None:
        self._leave = message

    def process_input_requests(self, recv_reqs: list[Any]) -> None:
        self._heartbeat.beat()
        super().process_input_requests(recv_reqs)
        if self._leave is not None and self.may_leave():
            self._leave_now(self._leave)
        if self.share_watch is not None:
            self.share_watch.look(self.forward_stream, self.forward_ct)
        if self.gracefully_exit and self.is_fully_idle():
            self.return_unused()
            self.on_end()
            raise SystemExit(0)

    def may_leave(self) -> bool:
        """Whether a worker that was told to leave has all it is still to get."""
        return True

    def give_all(self, successor: int) -> list[str]:
        """Pass everything to the pair ``successor``; ids of the requests that stay.

        Called with no forward running and no result waiting.
        """
        raise NotImplementedError

    def _leave_now(self, message: Leave) -> None:
        self._finish_iteration()
        unfinished = self.give_all(message.successor)
        self.on_end()
        outputs = self.ipc_channels.send_to_detokenizer
        outputs.send_output(HasLeft(self.spec.role, self.spec.generation, unfinished))
        if outputs.socket is not None:
            flush(outputs.socket)
        raise SystemExit(0)

    def _finish_iteration(self) -> None:
        """Process the result that overlap scheduling has left for later."""
        if self.enable_overlap and self.last_batch:
            self.process_batch_result(*self.result_queue.popleft())
        self.last_batch: ScheduleBatch | None = None
        if str(self.device).startswith("cuda"):
            torch.cuda.synchronize()

    def on_end(self) -> None:
        """What a role does last."""

    def on_idle(self) -> None:
        self.return_unused()
        if self.is_fully_idle():
            self._audit.when_idle(self.forward_ct)
        super().on_idle()

    def known_pages(self) -> Ids | None:
        """The pages this idle worker owns for a reason; None if it cannot tell yet."""
        lease = self.memory.table.lease
        if lease is None or self.memory.table.labelled_rows(lease.slot):
            return None  # a request is on its way here
        return self.token_to_kv_pool_allocator.held_pages()

    def return_unused(self) -> None:
        """Hand leased but unused pages and rows back to the other worker."""
        self.token_to_kv_pool_allocator.return_unused()
        self.req_to_token_pool.return_unused()
