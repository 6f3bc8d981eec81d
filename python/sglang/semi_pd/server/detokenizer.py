# SPDX-License-Identifier: Apache-2.0
"""SGLang's detokenizer, which can say that nothing of a dead worker is on its way.

What the detokenizer has passed on is what clients have: a request that is taken up
again goes on behind that.
"""

from __future__ import annotations

import logging
from typing import Any

import zmq
from sglang.semi_pd.server.sender_watch import SenderWatch
from sglang.semi_pd.workers.succession_messages import (
    DrainOutputs,
    HasLeft,
    IsIntroduced,
    NotBegun,
    OutputsDrained,
)
from sglang.srt.managers.detokenizer_manager import (
    DetokenizerManager,
    run_detokenizer_process,
)
from sglang.srt.managers.io_struct import sock_recv, sock_send
from sglang.utils import TypeBasedDispatcher

logger = logging.getLogger(__name__)

DRAIN_TIMEOUT_S = 10.0


class SemiPDDetokenizer(DetokenizerManager):
    """Passes on outputs of several generations of workers."""

    def init_ipc_channels(self, port_args: Any, server_args: Any) -> None:
        super().init_ipc_channels(port_args, server_args)
        self._senders = SenderWatch(self.recv_from_scheduler)

    def init_request_dispatcher(self) -> None:
        super().init_request_dispatcher()
        self._request_dispatcher += TypeBasedDispatcher(
            [
                (DrainOutputs, self.drain),
                (HasLeft, lambda message: message),
                (IsIntroduced, lambda message: message),
                (NotBegun, lambda message: message),
            ]
        )

    def drain(self, message: DrainOutputs) -> OutputsDrained:
        """Pass on all that dead processes sent; the answer comes behind it."""
        if not self._senders.wait_until_gone(message.pids, DRAIN_TIMEOUT_S):
            logger.error("Dead processes are still connected: %s", set(message.pids))
        while self.recv_from_scheduler.poll(0, zmq.POLLIN):
            output = self._request_dispatcher(sock_recv(self.recv_from_scheduler))
            if output is not None:
                sock_send(self.send_to_tokenizer, output)
        return OutputsDrained(message.pids)


def run(server_args: Any, port_args: Any) -> None:
    """The detokenizer process."""
    run_detokenizer_process(
        server_args, port_args, detokenizer_manager_class=SemiPDDetokenizer
    )
