# SPDX-License-Identifier: Apache-2.0
"""Requests go on after a death: all at once, or in parts where one may be its cause.

Lives in the main process, on its event loop. Who is chosen: ``suspects``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from sglang.semi_pd.server.suspects import Suspects
from sglang.srt.managers.io_struct import AbortReq

if TYPE_CHECKING:
    from sglang.semi_pd.server.request_ledger import RequestLedger
    from sglang.semi_pd.workers.succession_messages import Resume
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

POLL_S = 0.02


class Trials:
    """What becomes of the requests in flight when their workers have died.

    Args:
        resume: tells the pair that serves to go on with a request.
    """

    def __init__(
        self,
        manager: TokenizerManager,
        ledger: RequestLedger,
        resume: Callable[[Resume], None],
    ) -> None:
        self._manager, self._ledger, self._resume = manager, ledger, resume
        self._suspects = Suspects(ledger.tokens_of)
        self._with_pair: frozenset[str] = frozenset()
        self._waiting: list[str] = []
        self._task: asyncio.Task[None] | None = None

    def end(self) -> None:
        """The pair has died. Those that wait were not with it."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._with_pair = self._ledger.rids.difference(self._waiting)

    def judge(self) -> None:
        """Give up the request that brings down every other, if it is clear which."""
        guilty = self._suspects.saw_a_death(self._with_pair)
        if guilty is not None:
            self._ledger.forget([guilty])
            self._manager._handle_abort_req(
                AbortReq(rid=guilty, finished_reason=_given_up())
            )

    def end_aborted(self, rids: Collection[str]) -> None:
        """Of these: told to a worker, the id of one may begin that of another."""
        for abort in self._ledger.aborted():
            if abort.rid in rids:
                self._manager._handle_abort_req(abort)

    def begin(self, rids: Iterable[str]) -> None:
        """Let these go on; those that may bring the new pair down, in parts."""
        self._waiting = list(rids)
        self._go_on()
        if self._waiting:
            self._task = asyncio.ensure_future(self._go_on_in_parts())

    def _go_on(self) -> None:
        chosen = dict.fromkeys(self._suspects.next_of(self._waiting))
        self._waiting = [rid for rid in self._waiting if rid not in chosen]
        for message in self._ledger.resumptions(chosen):
            self._resume(message)

    async def _go_on_in_parts(self) -> None:
        while self._waiting:
            await asyncio.sleep(POLL_S)
            if self._suspects.are_cleared():
                self.end_aborted(self._waiting)
                self._go_on()


def _given_up() -> dict[str, Any]:
    return {
        "type": "abort",
        "message": "pair after pair of workers died of this request",
        "status_code": HTTPStatus.INTERNAL_SERVER_ERROR,
        "err_type": "InternalServerError",
    }
