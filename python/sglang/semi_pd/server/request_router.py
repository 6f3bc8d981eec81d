# SPDX-License-Identifier: Apache-2.0
"""Which worker gets what from the main process.

SGLang's TokenizerManager speaks to one scheduler; here that is prefill, which hands
requests over to decode. What concerns running requests, or the process as such, goes to
decode as well. Upstream expects one answer to a control message: prefill's. How the
server does is known to decode alone: it generates the tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import zmq
import zmq.asyncio
from sglang.semi_pd.utils import InstanceRole
from sglang.srt.managers.io_struct import (
    AbortReq,
    ConfigureLoggingReq,
    ContinueGenerationReqInput,
    FreezeGCReq,
    GetInternalStateReq,
    PauseGenerationReqInput,
    ProfileReq,
    SetInternalStateReq,
    SlowDownReqInput,
    async_sock_send,
    sock_send,
)
from sglang.srt.utils.network import get_zmq_socket

if TYPE_CHECKING:
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

_FOR_BOTH = (
    AbortReq,
    ConfigureLoggingReq,
    ContinueGenerationReqInput,
    FreezeGCReq,
    PauseGenerationReqInput,
    ProfileReq,
    SetInternalStateReq,
    SlowDownReqInput,
)


class RequestRouter:
    """The decode worker's socket beside the one upstream holds for prefill."""

    def __init__(self, decode_address: str) -> None:
        context = zmq.asyncio.Context(1)
        self._decode = get_zmq_socket(context, zmq.PUSH, decode_address, True)

    def send_to(
        self, manager: TokenizerManager, role: InstanceRole, message: Any
    ) -> None:
        """Send to the worker of one role."""
        is_prefill = role is InstanceRole.PREFILL
        sock_send(manager.send_to_scheduler if is_prefill else self._decode, message)

    def send(self, manager: TokenizerManager, message: Any) -> None:
        for socket in self._targets(manager, message):
            sock_send(socket, message)

    async def send_async(self, manager: TokenizerManager, message: Any) -> None:
        for socket in self._targets(manager, message):
            await async_sock_send(socket, message)

    def _targets(self, manager: TokenizerManager, message: Any) -> list[Any]:
        prefill = manager.send_to_scheduler
        if isinstance(message, GetInternalStateReq):
            return [self._decode]
        return [prefill, self._decode] if isinstance(message, _FOR_BOTH) else [prefill]
