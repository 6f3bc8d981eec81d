# SPDX-License-Identifier: Apache-2.0
"""Watches the workers of an instance, replaces them when one dies or the split moves.

One thread, for as long as the server lives: it alone starts and ends workers. A worker
that dies takes its partner with it. On a GPU it must be so, for the death of one MPS
client poisons the other; elsewhere one way is simpler than two. The residents keep
weights and KV, so a new pair goes on where the clients' answers stopped.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import TYPE_CHECKING

from sglang.semi_pd.errors import RotationError, SemiPDError, WorkerStartError
from sglang.semi_pd.server.pulse import Pulse
from sglang.semi_pd.server.recovery import Recovery
from sglang.semi_pd.server.rotation import Rotation
from sglang.semi_pd.server.standstill import Standstills
from sglang.semi_pd.server.worker import Worker

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from sglang.semi_pd.server.switchboard import Switchboard, SwitchNews
    from sglang.semi_pd.server.worker_group import WorkerGroup
    from sglang.semi_pd.sm_allocation import SMAllocation

logger = logging.getLogger(__name__)

LOOK_S = 0.5
"""How often heartbeats are read; deaths are noticed at once."""

ENDING = "the server ends"
START_AGAIN = "start the server again"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long workers may take, in seconds.

    Attributes:
        hang_s: a worker whose heart has not beaten for so long is replaced.
        standby_s: a rotation whose workers are not ready then has failed.
    """

    hang_s: float
    standby_s: float


class Supervisor:
    """The only one that starts and ends workers once the server serves.

    Attributes:
        recovery: what became of the deaths so far.

    Args:
        allocation: the split in force.
        give_up: called when the instance cannot go on, with the reason.
    """

    def __init__(
        self,
        group: WorkerGroup,
        switchboard: Switchboard,
        *,
        allocation: Callable[[], SMAllocation],
        patience: Patience,
        give_up: Callable[[SemiPDError], None],
    ) -> None:
        self._group, self._switchboard = group, switchboard
        self._patience = patience
        self._give_up = give_up
        self._asked: queue.Queue[tuple[SMAllocation, Future[Rotation]]] = queue.Queue()
        self._news: queue.Queue[SwitchNews] = queue.Queue()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._is_ending = False
        self._takes_moves = True
        self._thread = threading.Thread(
            target=self._run, name="semi-pd-supervisor", daemon=True
        )
        self._rotation: Rotation | None = None
        self._pulse = Pulse(())
        self._standstills = Standstills(patience.hang_s)
        self._woke_at = time.time()
        self.recovery = Recovery(group, switchboard, allocation)

    def start(self) -> None:
        """Begin to watch; every process of the pair is ready."""
        self._watch_pair()
        self._thread.start()

    def stop(self) -> None:
        """Watch no more: from here on, the end of a process is no accident."""
        self._is_ending = True
        self._switchboard.end()
        self._wake()
        while self._thread.is_alive():
            self.recovery.cut_short()
            self._thread.join(LOOK_S)
        if self._rotation is not None:
            self._rotation.abandon(ENDING)
        self._refuse_asked()

    def end_moves(self) -> None:
        """Begin no rotation any more, and end one that has not come to its switch."""
        self._takes_moves = False
        self._wake()

    def rotate(self, allocation: SMAllocation) -> Future[Rotation]:
        """Bring a new pair with this split into service."""
        done: Future[Rotation] = Future()
        self._asked.put((allocation, done))
        self._wake()
        if not self._thread.is_alive():
            self._refuse_asked()
        return done

    def hear(self, message: SwitchNews) -> None:
        """What a switch waits for has happened; called on the event loop."""
        self._news.put(message)
        self._wake()

    # The thread

    def _run(self) -> None:
        try:
            while not self._is_ending:
                self._look()
        except SemiPDError as error:
            self._give_up(error)
        except Exception as error:
            if self._is_ending:  # the event loop may have ended before this thread
                logger.info("Ended amid a move or a recovery: %r", error)
                return
            logger.exception("The supervisor failed")
            self._give_up(SemiPDError("The supervisor failed", why=repr(error)))

    def _look(self) -> None:
        """Sleep until something happens, and deal with it."""
        # One look decides both what is dealt with and what is slept on.
        alive = self._alive()
        self._require_what_stays(alive)
        fallen = self._fallen(alive)
        if fallen:
            self._recover(fallen)
            return
        if not self._takes_moves:
            self._refuse_asked()
        if self._rotation is None and not self._asked.empty():
            self._begin(*self._asked.get())
        if self._rotation is not None and self._advance(self._rotation):
            return
        awaited = self._rotation.awaited() if self._rotation else []
        fds = [self._wake_read, *(worker.pidfd for worker in alive), *awaited]
        woken_by = wait([*fds, self._detokenizer.sentinel], LOOK_S)
        self._woke_at = time.time()
        if self._wake_read in woken_by:
            os.read(self._wake_read, 4096)

    def _alive(self) -> list[Worker]:
        return [worker for worker in self._group.workers if not worker.has_ended]

    def _require_what_stays(self, alive: list[Worker]) -> None:
        for worker in self._group.residents:
            if worker not in alive:
                raise WorkerStartError(
                    f"{_named(worker)} is gone",
                    why=f"exit code {_exit_code(worker)}; weights and KV went with it",
                    mend=START_AGAIN,
                )
        detokenizer = self._detokenizer
        if detokenizer.exitcode is not None:
            raise SemiPDError(
                f"detokenizer (pid {detokenizer.pid}) is gone",
                why=f"exit code {detokenizer.exitcode}; where each answer was is lost",
                mend=START_AGAIN,
            )

    @property
    def _detokenizer(self) -> BaseProcess:
        assert self._group.detokenizer is not None, "it was started with the others"
        return self._group.detokenizer

    def _fallen(self, alive: list[Worker]) -> str:
        """Why the pair cannot go on; empty if it can."""
        leaving = self._rotation is not None and self._rotation.is_switching
        for worker in self._group.pair.workers:
            if worker in alive or (leaving and self._may_have_ended(worker)):
                continue
            return f"{_named(worker)} ended with exit code {_exit_code(worker)}"
        if leaving:
            return ""
        self._standstills.look(self._pulse)
        hang_s = self._patience.hang_s
        silent = self._pulse.silent(hang_s)
        if silent is None:
            return ""
        return f"{_named(silent)} has stood still for {hang_s:.0f} s"

    def _may_have_ended(self, worker: Worker) -> bool:
        """Whether the end of a worker that leaves is in order."""
        assert self._rotation is not None, "it leaves for a rotation"
        return self._rotation.has_switched or _exit_code(worker) == 0

    # A rotation

    def _refuse_asked(self) -> None:
        while not self._asked.empty():
            _, done = self._asked.get()
            done.set_exception(RotationError("The split does not move", why=ENDING))

    def _begin(self, allocation: SMAllocation, done: Future[Rotation]) -> None:
        self._rotation = Rotation(
            allocation,
            done,
            self._group,
            self._switchboard,
            standby_timeout_s=self._patience.standby_s,
        )
        self._rotation.begin()

    def _advance(self, rotation: Rotation) -> bool:
        """Whether there is more to do at once."""
        while not self._news.empty():
            rotation.note(self._news.get())
        if not (self._takes_moves or rotation.is_switching or rotation.is_over):
            rotation.end(ENDING)
        if not rotation.is_over:
            rotation.advance()
        if rotation.must_recover:
            self._recover(rotation.must_recover)
            return True
        if not rotation.is_over:
            return False
        self._rotation = None
        self._watch_pair()
        return True

    # A death

    def _recover(self, why: str) -> None:
        """Replace the pair; every request goes on from what its client has."""
        rotation, self._rotation = self._rotation, None
        self.recovery.begin(why, self._woke_at)
        if rotation is not None:
            rotation.abandon(why)
        try:
            self.recovery.replace_pair()
        except TimeoutError:
            # The detokenizer tells what clients have: it may be what died.
            self._require_what_stays(self._alive())
            raise
        self._watch_pair()

    def _watch_pair(self) -> None:
        self._pulse.close()
        self._pulse = Pulse(self._group.pair.workers)
        self._standstills = Standstills(self._patience.hang_s)

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"!")
        except BlockingIOError:
            """It will wake up anyhow."""


def _named(worker: Worker) -> str:
    return f"{worker.spec.title} (pid {worker.pid})"


def _exit_code(worker: Worker) -> int | None:
    worker.process.join(timeout=10)
    return worker.process.exitcode
