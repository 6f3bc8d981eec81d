# SPDX-License-Identifier: Apache-2.0
"""Which worker gets what from the main process.

SGLang's TokenizerManager speaks to one scheduler. Requests go to prefill alone, which
hands them over; everything else concerns both workers. Of the workers' answers to a
control message only one is expected upstream: see ``answers_control``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import zmq
from sglang.srt.managers.io_struct import (
    BatchTokenizedGenerateReqInput,
    TokenizedGenerateReqInput,
    async_sock_send,
    sock_send,
)
from sglang.srt.utils.network import get_zmq_socket

if TYPE_CHECKING:
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

_REQUESTS = (TokenizedGenerateReqInput, BatchTokenizedGenerateReqInput)


class RequestRouter:
    """The decode worker's socket beside the one upstream holds for prefill."""

    def __init__(self, decode_address: str) -> None:
        context = zmq.asyncio.Context(1)
        self._decode = get_zmq_socket(context, zmq.PUSH, decode_address, True)

    def send(self, manager: TokenizerManager, message: Any) -> None:
        for socket in self._targets(manager, message):
            sock_send(socket, message)

    async def send_async(self, manager: TokenizerManager, message: Any) -> None:
        for socket in self._targets(manager, message):
            await async_sock_send(socket, message)

    def _targets(self, manager: TokenizerManager, message: Any) -> list[Any]:
        prefill = manager.send_to_scheduler
        return [prefill] if isinstance(message, _REQUESTS) else [prefill, self._decode]
