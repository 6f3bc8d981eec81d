# SPDX-License-Identifier: Apache-2.0
"""Handovers are taken while the GPU works on a decode step.

Building a request takes a part of a millisecond of the scheduler's time, and many may
come at once. Done between two steps it delays every stream; done while the scheduler
waits for a step's result it delays nothing, and between two steps only the joining is
left.

The first token of a request does not leave when it is adopted, nor when it joins
(``news_streamer``): the gap behind it would be longer by the same time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import zmq
from sglang.semi_pd.workers.handover_times import HandoverTimes
from sglang.semi_pd.workers.introduction import Acquaintances
from sglang.semi_pd.workers.messages import Announced, Handover, NotComing
from sglang.semi_pd.workers.succession_messages import PassedOn
from sglang.semi_pd.workers.worker_scheduler import WorkerScheduler
from sglang.srt.managers.io_struct import sock_recv
from sglang.utils import TypeBasedDispatcher

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch


class EarlyAdoption(WorkerScheduler):
    """What the decode scheduler does with its socket while the GPU works.

    Only with one rank: with several, messages are taken by all ranks at one place in
    the loop.
    """

    handover_times: HandoverTimes
    announced: Acquaintances
    _postponed: list[Any]
    _early: dict[type, Callable[[Any], None]]
    """What is done with each kind of message that need not wait for its place."""

    def init_ipc_channels(self, port_args: Any) -> None:
        super().init_ipc_channels(port_args)
        self._postponed = []
        self.handover_times = HandoverTimes()
        self.announced = Acquaintances()

    def init_request_dispatcher(self) -> None:
        super().init_request_dispatcher()
        self._early = {
            Announced: self.announce,
            NotComing: lambda message: self.announced.drop(message.request_id),
            Handover: self.receive,
            PassedOn: self.take_over,
        }
        self._request_dispatcher += TypeBasedDispatcher(list(self._early.items()))

    def receive(self, handover: Handover) -> None:
        """Adopt a request; of the decode scheduler."""
        raise NotImplementedError

    def announce(self, message: Announced) -> None:
        """Build a request before it is handed over; of the decode scheduler."""
        raise NotImplementedError

    def take_over(self, message: PassedOn) -> None:
        """Adopt what a predecessor ran; of the decode scheduler."""
        raise NotImplementedError

    def process_batch_result(self, batch: ScheduleBatch, result: Any) -> None:
        done = getattr(result, "copy_done", None)
        if done is not None and self.server_args.tp_size == 1:
            while not done.query():
                self._take_handovers()
        super().process_batch_result(batch, result)

    def process_input_requests(self, recv_reqs: list[Any]) -> None:
        postponed, self._postponed = self._postponed, []
        super().process_input_requests([*postponed, *recv_reqs])

    def _take_handovers(self) -> None:
        """Adopt what has arrived, up to the first message of another kind: that one and
        all behind it wait for their place in the loop."""
        while True:
            try:
                message = sock_recv(self.recv_from_tokenizer, zmq.NOBLOCK)
            except zmq.Again:
                return
            take = self._early.get(type(message))
            if take is None or self._postponed:
                self._postponed.append(message)
            else:
                take(message)
