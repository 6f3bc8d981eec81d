# SPDX-License-Identifier: Apache-2.0
"""Running requests are introduced to the next decode worker before they change hands.

To build a request takes a part of a millisecond, and in a switch all that run change
hands at once. So while the old worker still decodes it says what the clients had asked
for; its successor builds the requests, and at the switch is told only how far each has
come.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from sglang.semi_pd.workers.messages import Handover
from sglang.semi_pd.workers.succession_messages import Introduced, PassedOn
from sglang.srt.managers.io_struct import sock_send

if TYPE_CHECKING:
    import zmq
    from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
    from sglang.srt.managers.schedule_batch import Req

IN_ONE_TURN = 4
"""Requests that are introduced between two steps: few, for streams wait meanwhile."""

DUE_S = 1.0
"""Longer than the last part of a prompt takes."""


class Introductions:
    """The giving end, in a decode worker that is going to leave.

    Args:
        socket: to the successor, None on ranks that do not speak. All goes through it:
            what is passed on must not overtake its introduction.
        reqs: those that run.
    """

    def __init__(self, socket: zmq.Socket | None, reqs: Iterable[Req]) -> None:
        self.socket = socket
        self._next = deque(reqs)
        self._introduced: dict[str, TokenizedGenerateReqInput] = {}
        self._is_over = False
        if socket is not None:
            # The successor may never be there to read: then this end must not wait.
            socket.linger = 0

    def go_on(self) -> None:
        """Introduce the next few."""
        if self._is_over:
            return
        turn = [self._next.popleft() for _ in range(min(IN_ONE_TURN, len(self._next)))]
        requests = [req.semi_pd_request for req in turn if not req.finished()]
        self._introduced.update((request.rid, request) for request in requests)
        self._is_over = not self._next
        self._send(Introduced(requests, are_all=self._is_over))

    def pass_on(self, handovers: Iterable[Handover]) -> None:
        """Give everything up; what was introduced goes without what was said of it."""
        self._send(PassedOn([self._shortened(one) for one in handovers]))

    def _shortened(self, handover: Handover) -> Handover:
        # A client may have used an id again since.
        introduced = self._introduced.get(handover.request_id)
        if introduced is None or introduced is not handover.request:
            return handover
        return dataclasses.replace(handover, request=None)

    def _send(self, message: Any) -> None:
        if self.socket is not None:
            sock_send(self.socket, message)


class Acquaintances:
    """The receiving end: requests that are built before they change hands."""

    def __init__(self) -> None:
        self._asked: dict[str, TokenizedGenerateReqInput] = {}
        self._built: dict[str, Req] = {}
        self._newest = 0.0

    def is_one_due(self) -> bool:
        """Whether the last part of a prompt is being computed; no longer if its worker
        has not been heard of since."""
        return bool(self._asked) and time.monotonic() - self._newest < DUE_S

    def expect(self, request: TokenizedGenerateReqInput) -> None:
        """A request that another worker has is about to be built."""
        self._asked[request.rid] = request
        self._newest = time.monotonic()

    def keep(self, req: Req) -> None:
        """It is built, unless it has ended by now."""
        if req.rid in self._asked:
            self._built[req.rid] = req

    def complete(self, handover: Handover) -> tuple[Handover, Req | None]:
        """A handover with what its introduction said, and what was built from that;
        None where building takes longer, as long as a grammar takes to compile."""
        request = self._asked.pop(handover.request_id)
        req = self._built.pop(handover.request_id, None)
        return dataclasses.replace(handover, request=request), req

    def drop(self, request_id: str) -> None:
        """It will not change hands."""
        self._asked.pop(request_id, None)
        self._built.pop(request_id, None)

    def forget(self) -> None:
        """All that still run have changed hands."""
        self._asked.clear()
        self._built.clear()
