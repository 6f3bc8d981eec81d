# SPDX-License-Identifier: Apache-2.0
"""Between the thread that watches the workers and the event loop that feeds them.

SGLang's sockets and request states belong to its event loop; each method here may be
called from another thread, and returns when the loop has done it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import zmq
import zmq.asyncio
from sglang.semi_pd.server.rehearsal import Rehearsal
from sglang.semi_pd.server.request_router import RequestRouter
from sglang.semi_pd.server.sender_watch import SenderWatch
from sglang.semi_pd.utils import InstanceRole
from sglang.semi_pd.workers.messages import MakeRoom
from sglang.semi_pd.workers.succession_messages import (
    DrainOutputs,
    HasLeft,
    IsIntroduced,
    NotBegun,
    OutputsDrained,
    Rehearsed,
)
from sglang.srt.managers.io_struct import sock_send
from sglang.srt.utils.network import get_zmq_socket
from sglang.utils import TypeBasedDispatcher

if TYPE_CHECKING:
    from sglang.srt.managers.tokenizer_manager import TokenizerManager
    from sglang.srt.server_args import PortArgs

logger = logging.getLogger(__name__)

T = TypeVar("T")
SwitchNews = HasLeft | IsIntroduced | Rehearsed
"""What a switch waits for, one after the other."""

LOOP_TIMEOUT_S = 60.0
DRAIN_TIMEOUT_S = 30.0
POLL_S = 0.05
DRAIN_POLL_S = 0.002


class Switchboard:
    """Leads messages to the pair that serves.

    Args:
        heard: called on the event loop with what a switch waits for.
        free_pages: of the KV cache.
    """

    def __init__(
        self,
        manager: TokenizerManager,
        port_args: PortArgs,
        run_directory: Path,
        heard: Callable[[SwitchNews], None],
        free_pages: Callable[[], int],
    ) -> None:
        self._manager = manager
        self.router = RequestRouter(manager, run_directory)
        self._to_detokenizer = get_zmq_socket(
            zmq.asyncio.Context.instance(),
            zmq.PUSH,
            port_args.detokenizer_ipc_name,
            False,
        )
        # Else they send to the detokenizer, which has a watch of its own.
        self._senders = (
            SenderWatch(manager.recv_from_detokenizer)
            if manager.skip_tokenizer_init
            else None
        )
        self._drained: asyncio.Future[None] | None = None
        self._heard, self._free_pages = heard, free_pages
        self._rehearsing: asyncio.Task[None] | None = None
        self._is_ending = threading.Event()

    def listen(self) -> None:
        """Take what workers tell us, once SGLang has its dispatcher."""
        self._manager._result_dispatcher += TypeBasedDispatcher(
            [
                (HasLeft, self._note_left),
                (IsIntroduced, self._heard),
                (NotBegun, self.router.pass_on),
                (OutputsDrained, self._note_drained),
            ]
        )

    def end(self) -> None:
        """The server ends: nobody waits any more for an event loop that never began."""
        self._is_ending.set()

    def send(self, role: InstanceRole, message: Any) -> None:
        """Send to the worker of one role."""
        self._call(self.router.send_to, role, message)

    def prepare(self, generation: int) -> None:
        """See ``RequestRouter``."""
        self._call(self.router.prepare, generation)

    def rehearse(self, generation: int) -> None:
        """Have a pair that is ready answer requests of our own, and get to know those
        of clients; ``heard`` tells when each is done."""
        self._call(self._rehearse, generation, self._free_pages())

    def discard(self, generation: int) -> None:
        """See ``RequestRouter``."""
        self._call(self._after_rehearsal, self.router.discard, generation)

    def switch_to(self, generation: int) -> None:
        """See ``RequestRouter``."""
        self._call(self._after_rehearsal, self.router.switch_to, generation)

    def begin_again(self, unfinished: list[str]) -> None:
        """See ``RequestRouter``."""
        self._call(self.router.begin_again, unfinished)

    def finish_switch(self) -> None:
        """See ``RequestRouter``."""
        self._call(self.router.finish_switch)

    def hold(self) -> None:
        """See ``RequestRouter``."""
        self._call(self._after_rehearsal, self.router.hold)

    def release_to(self, generation: int, *, had_begun: bool) -> None:
        """See ``RequestRouter``."""
        release_to = partial(self.router.release_to, had_begun=had_begun)
        self._call(release_to, generation)

    def drain(self, pids: frozenset[int]) -> None:
        """Return when clients have been sent all that these dead processes sent.

        Raises:
            TimeoutError: the detokenizer does not answer.
        """
        drained = asyncio.run_coroutine_threadsafe(self._drain(pids), self._loop())
        _result(drained, DRAIN_TIMEOUT_S)

    def _rehearse(self, generation: int, free_pages: int) -> None:
        running = self.router.ledger.running()
        rehearsal = Rehearsal(self._manager, generation, running)
        missing = rehearsal.pages(self._manager.server_args.page_size) - free_pages
        if missing > 0:
            self.router.send_to(InstanceRole.PREFILL, MakeRoom(missing, 0))
        self.router.introduce(generation)
        self._rehearsing = asyncio.ensure_future(rehearsal.run())
        self._rehearsing.add_done_callback(
            lambda task: self._note_rehearsed(task, generation)
        )

    def _note_rehearsed(self, task: asyncio.Task[None], generation: int) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            logger.error("Generation %d: rehearsal failed: %r", generation, error)
        self._heard(Rehearsed(generation))

    def _after_rehearsal(self, function: Callable[..., None], *arguments: Any) -> None:
        """What is not rehearsed by now must not stand before clients."""
        if self._rehearsing is not None:
            self._rehearsing.cancel()
            self._rehearsing = None
        function(*arguments)

    def _note_left(self, message: HasLeft) -> None:
        self.router.tell_successor(message)
        self._heard(message)

    async def _drain(self, pids: frozenset[int]) -> None:
        if self._senders is not None:
            await self._drain_here(self._senders, pids)
            return
        self._drained = asyncio.get_running_loop().create_future()
        sock_send(self._to_detokenizer, DrainOutputs(pids))
        await self._drained

    async def _drain_here(self, senders: SenderWatch, pids: frozenset[int]) -> None:
        """Workers send straight to the main process."""
        while senders.senders() & pids:
            await asyncio.sleep(DRAIN_POLL_S)
        while zmq.Socket.shadow(self._manager.recv_from_detokenizer).poll(0):
            await asyncio.sleep(DRAIN_POLL_S)

    def _note_drained(self, _: OutputsDrained) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def _call(self, function: Callable[..., T], *arguments: Any) -> T:
        done: concurrent.futures.Future[T] = concurrent.futures.Future()

        def run() -> None:
            try:
                done.set_result(function(*arguments))
            except Exception as error:  # noqa: BLE001 - raised again where it was asked
                done.set_exception(error)

        self._loop().call_soon_threadsafe(run)
        return _result(done, LOOP_TIMEOUT_S)

    def _loop(self) -> Any:
        """SGLang's event loop; it begins with the HTTP server, or with a request."""
        while self._manager.event_loop is None:
            if self._is_ending.wait(POLL_S):
                raise RuntimeError("the server ended before its event loop began")
        return self._manager.event_loop


def _result(future: concurrent.futures.Future[T], timeout_s: float) -> T:
    """What the event loop answered; in Python 3.10 a future has a timeout of its own.

    Raises:
        TimeoutError: it did not.
    """
    try:
        return future.result(timeout_s)
    except concurrent.futures.TimeoutError as error:
        late = f"the event loop did not answer within {timeout_s:g} s"
        raise TimeoutError(late) from error
