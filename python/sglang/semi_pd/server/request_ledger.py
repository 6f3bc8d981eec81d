# SPDX-License-Identifier: Apache-2.0
"""What clients asked for and have not got in full: enough to begin again.

Workers may die with all they know. What the client has been sent stands in SGLang's
TokenizerManager; what it asked for stands here. Lives in the main process, on its
event loop.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sglang.semi_pd.workers.succession_messages import Resume
from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX
from sglang.srt.managers.io_struct import (
    AbortReq,
    BatchTokenizedGenerateReqInput,
    TokenizedGenerateReqInput,
)

if TYPE_CHECKING:
    from sglang.srt.managers.tokenizer_manager import TokenizerManager


@dataclass(slots=True)
class _InFlight:
    """A request.

    Attributes:
        is_aborted: its workers were told to end it.
    """

    request: TokenizedGenerateReqInput
    is_aborted: bool = False


class RequestLedger:
    """The requests in flight, as they were sent to the workers."""

    def __init__(self, manager: TokenizerManager) -> None:
        self._manager = manager
        self._requests: dict[str, _InFlight] = {}

    def note(self, message: Any) -> bool:
        """Remember the requests in a message, or that they are aborted; False if it is
        about none. A health check is none: who asks gives it up by itself."""
        if isinstance(message, AbortReq):
            self._note_abort(message)
            return True
        requests = [message]
        if isinstance(message, BatchTokenizedGenerateReqInput):
            requests = list(message)
        first = requests[0]
        if not isinstance(first, TokenizedGenerateReqInput) or first.rid.startswith(
            HEALTH_CHECK_RID_PREFIX
        ):
            return False
        self._requests.update((r.rid, _InFlight(r)) for r in requests)
        return True

    def _note_abort(self, abort: AbortReq) -> None:
        for rid in self._requests if abort.abort_all else [abort.rid]:
            if rid in self._requests:
                self._requests[rid].is_aborted = True

    def aborted(self) -> list[AbortReq]:
        """Those that were aborted and have not ended; their ids have not been used
        again."""
        return [
            AbortReq(rid=rid)
            for rid, entry in self._requests.items()
            if entry.is_aborted
        ]

    def aborts_to_repeat(self) -> list[AbortReq]:
        """What to say again, for a worker may have gone before it heard it.

        SGLang aborts all ids that begin like the one it is told: where another's does,
        it is not said.
        """
        others = [rid for rid, one in self._requests.items() if not one.is_aborted]
        return [
            abort
            for abort in self.aborted()
            if not any(rid.startswith(abort.rid) for rid in others)
        ]

    def forget(self, rids: Iterable[str]) -> None:
        """These have ended."""
        for rid in rids:
            self._requests.pop(rid, None)

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def rids(self) -> frozenset[str]:
        """The ids of all in flight."""
        return frozenset(self._requests)

    def tokens_of(self, rid: str) -> int | None:
        """How many tokens a client has; None if its request has ended."""
        state = self._manager.rid_to_state.get(rid)
        if rid not in self._requests or state is None or state.finished:
            return None
        return len(state.output_ids)

    def running(self) -> list[TokenizedGenerateReqInput]:
        """What clients have the first tokens of, as it was sent."""
        states = self._manager.rid_to_state
        return [
            entry.request
            for rid, entry in self._requests.items()
            if rid in states and states[rid].output_ids
        ]

    def resumptions(self, rids: Iterable[str] | None = None) -> list[Resume]:
        """How to go on with these requests, or with all, from what clients have."""
        wanted = list(self._requests) if rids is None else rids
        found = []
        for rid in wanted:
            entry = self._requests.get(rid)
            state = self._manager.rid_to_state.get(rid)
            if entry is None or state is None or state.finished:
                self._requests.pop(rid, None)
            else:
                sent = list(state.output_ids)
                found.append(Resume(request=entry.request, output_ids=sent))
        return found
