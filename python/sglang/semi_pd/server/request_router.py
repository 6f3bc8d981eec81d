# SPDX-License-Identifier: Apache-2.0
"""Which worker gets what from the main process.

SGLang's TokenizerManager speaks to one scheduler; here that is prefill, which hands
requests over to decode. What concerns running requests, or the process as such, goes to
decode as well. Upstream expects one answer to a control message: prefill's. How the
server does is known to decode alone: it generates the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import zmq
import zmq.asyncio
from sglang.semi_pd.server import rehearsal
from sglang.semi_pd.server.open_questions import OpenQuestions
from sglang.semi_pd.server.request_ledger import RequestLedger
from sglang.semi_pd.server.trials import Trials
from sglang.semi_pd.utils import InstanceRole
from sglang.semi_pd.workers.succession_messages import (
    HasLeft,
    Introduce,
    Leave,
    NotBegun,
    Recover,
)
from sglang.semi_pd.workers.worker_spec import input_address
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

_LASTING = (ConfigureLoggingReq, PauseGenerationReqInput, SlowDownReqInput)
"""What changes the state of a worker, and so of those that come after it."""

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


@dataclass(frozen=True, slots=True)
class _PairSockets:
    """The two workers of a generation."""

    prefill: Any
    decode: Any

    def of(self, role: InstanceRole) -> Any:
        return self.prefill if role is InstanceRole.PREFILL else self.decode

    def close(self) -> None:
        self.prefill.close(linger=0)
        self.decode.close(linger=0)


class RequestRouter:
    """Sends messages to the pair that serves; keeps them while none does.

    Lives on the main process's event loop.
    """

    def __init__(self, manager: TokenizerManager, run_directory: Path) -> None:
        self._manager = manager
        self._run_directory = run_directory
        self._context = zmq.asyncio.Context(1)
        self._pair = _PairSockets(
            manager.send_to_scheduler, self._socket(InstanceRole.DECODE, 1)
        )
        self._prepared: dict[int, _PairSockets] = {}
        self._leaving: _PairSockets | None = None
        self._held: list[Any] | None = None
        self.ledger = RequestLedger(manager)
        self.questions = OpenQuestions()
        self._put_to_leaving: list[Any] = []
        self._lasting: dict[type, Any] = {}
        to_prefill = partial(self.send_to, InstanceRole.PREFILL)
        self._trials = Trials(manager, self.ledger, to_prefill)

    def send_to(self, role: InstanceRole, message: Any) -> None:
        """Send to the worker of one role."""
        sock_send(self._pair.of(role), message)

    def send(self, message: Any) -> None:
        """Send to whom it concerns."""
        for socket in self._targets(message):
            sock_send(socket, self._as_for(socket, message))

    async def send_async(self, message: Any) -> None:
        """As ``send``."""
        for socket in self._targets(message):
            await async_sock_send(socket, self._as_for(socket, message))

    # A new pair takes over

    def prepare(self, generation: int) -> None:
        """Listen for the workers of a pair, so that they are connected when needed."""
        self._prepared[generation] = _PairSockets(
            self._socket(InstanceRole.PREFILL, generation),
            self._socket(InstanceRole.DECODE, generation),
        )

    def introduce(self, generation: int) -> None:
        """What runs is introduced to a pair that is ready, before it takes over."""
        sock_send(self._pair.decode, Introduce(generation))

    def discard(self, generation: int) -> None:
        """This pair will not serve."""
        self._prepared.pop(generation).close()

    def switch_to(self, generation: int) -> None:
        """From now on another pair gets what arrives; the old one is told to leave."""
        self._put_to_leaving = self.questions.unanswered()
        self._leaving = old = self._pair
        self._use(generation)
        for socket in (old.prefill, old.decode):
            sock_send(socket, Leave(generation))

    def tell_successor(self, left: HasLeft) -> None:
        """The new decode worker waits for what the old one sent to be with clients."""
        if self._leaving is not None and left.role is InstanceRole.DECODE:
            sock_send(self._pair.decode, left)

    def begin_again(self, unfinished: list[str]) -> None:
        """These could not be handed over by a worker that has left."""
        for message in self.ledger.resumptions(unfinished):
            sock_send(self._pair.prefill, message)
        for abort in self.ledger.aborts_to_repeat():
            self.send(abort)

    def pass_on(self, message: NotBegun) -> None:
        """These have not been begun by a worker that leaves."""
        if self._leaving is not None and self._held is None:
            self.begin_again(message.request_ids)

    def finish_switch(self) -> None:
        """The old pair has left; what it has not answered yet it will not."""
        self._close_leaving()
        put, self._put_to_leaving = self._put_to_leaving, []
        for question in self.questions.unanswered():
            if any(question is one for one in put):
                self.send(question)

    # Nobody serves

    def hold(self) -> None:
        """Keep what arrives until ``release_to``."""
        if self._held is None:
            self._held = []
            self._trials.end()

    def release_to(self, generation: int, *, had_begun: bool) -> None:
        """A new pair serves: the requests in flight, then what was kept.

        Args:
            had_begun: whether the pair that died had taken over what was left to it;
                else its death says nothing of any request.
        """
        self._close_leaving()
        self._pair.close()
        self._use(generation)
        for other in list(self._prepared):  # of a rotation that the death ended
            self.discard(other)
        held, self._held = self._held or [], None
        held = [*self.questions.unanswered(), *held]
        if had_begun:
            self._trials.judge()
        self._trials.end_aborted(self.ledger.rids)
        running = self.ledger.resumptions()
        # All older ones: those that fell last may not have come to read this.
        sock_send(self._pair.prefill, Recover(range(1, generation), running))
        self._trials.begin(message.request.rid for message in running)
        for message in held:
            self.send(message)

    def _use(self, generation: int) -> None:
        self._pair = self._prepared.pop(generation)
        self._manager.send_to_scheduler = self._pair.prefill
        for message in self._lasting.values():
            for socket in (self._pair.prefill, self._pair.decode):
                sock_send(socket, message)

    def _close_leaving(self) -> None:
        if self._leaving is not None:
            self._leaving.close()
            self._leaving = None

    def _socket(self, role: InstanceRole, generation: int) -> Any:
        address = input_address(self._run_directory, role, generation)
        return get_zmq_socket(self._context, zmq.PUSH, address, True)

    def _as_for(self, socket: Any, message: Any) -> Any:
        """Each role's profile has a name of its own: one would overwrite the other.

        Not by the prefix of its name: SGLang merges only files that begin with the id.
        """
        if not isinstance(message, ProfileReq) or message.profile_id is None:
            return message
        is_decode = socket is self._pair.decode
        role = InstanceRole.DECODE if is_decode else InstanceRole.PREFILL
        named = f"{message.profile_id}-{role.value}"
        return msgspec.structs.replace(message, profile_id=named)

    def _targets(self, message: Any) -> list[Any]:
        if rehearsal.is_ours(message) and self._prepared:
            newest = self._prepared[max(self._prepared)]
            is_abort = isinstance(message, AbortReq)
            return [newest.prefill, newest.decode] if is_abort else [newest.prefill]
        is_noted = self.ledger.note(message)
        if self._held is not None:
            if not is_noted:
                self._held.append(message)
            return []
        self.questions.note_sent(message)
        if isinstance(message, _LASTING):
            self._lasting[type(message)] = message
        elif isinstance(message, ContinueGenerationReqInput):
            self._lasting.pop(PauseGenerationReqInput, None)
        if isinstance(message, GetInternalStateReq):
            return [self._pair.decode]
        targets = [self._pair.prefill]
        if isinstance(message, _FOR_BOTH):
            targets.append(self._pair.decode)
        if isinstance(message, AbortReq) and self._leaving is not None:
            targets += [self._leaving.prefill, self._leaving.decode]
        return targets
