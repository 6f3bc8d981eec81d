# SPDX-License-Identifier: Apache-2.0
"""What clients asked for and have not got in full: enough to begin again.

Workers may die with all they know. What the client has been sent stands in SGLang's
TokenizerManager; what it asked for stands here. Lives in the main process, on its
event loop.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from sglang.semi_pd.workers.messages import Resume
from sglang.srt.managers.io_struct import (
    BatchTokenizedGenerateReqInput,
    TokenizedGenerateReqInput,
)

if TYPE_CHECKING:
    from sglang.srt.managers.tokenizer_manager import TokenizerManager


class RequestLedger:
    """The requests in flight, as they were sent to the workers."""

    def __init__(self, manager: TokenizerManager) -> None:
        self._manager = manager
        self._requests: dict[str, TokenizedGenerateReqInput] = {}

    def note(self, message: Any) -> bool:
        """Remember the requests in a message; whether it has any."""
        requests = [message]
        if isinstance(message, BatchTokenizedGenerateReqInput):
            requests = list(message)
        if not isinstance(requests[0], TokenizedGenerateReqInput):
            return False
        self._requests.update((request.rid, request) for request in requests)
        return True

    def forget(self, rids: Iterable[str]) -> None:
        """These have ended."""
        for rid in rids:
            self._requests.pop(rid, None)

    def __len__(self) -> int:
        return len(self._requests)

    def resumptions(self, rids: Iterable[str] | None = None) -> list[Resume]:
        """How to go on with these requests, or with all, from what clients have."""
        wanted = list(self._requests) if rids is None else rids
        found = []
        for rid in wanted:
            request = self._requests.get(rid)
            state = self._manager.rid_to_state.get(rid)
            if request is None or state is None or state.finished:
                self._requests.pop(rid, None)
            else:
                sent = list(state.output_ids)
                found.append(Resume(request=request, output_ids=sent))
        return found
