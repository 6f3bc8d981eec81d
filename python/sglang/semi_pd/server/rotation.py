# SPDX-License-Identifier: Apache-2.0
"""One move of the split to a new pair of workers, as in the paper's Figure 6.

*Delayed switch*: the new pair takes over only when all of it is ready. *Asynchronous
switch*: each old worker leaves when it has finished its iteration; what it has goes to
its successor. A rotation that fails before the switch changes nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from sglang.semi_pd.errors import RotationError, SemiPDError
from sglang.semi_pd.launch.start_progress import Phase
from sglang.semi_pd.server.pulse import Pulse
from sglang.semi_pd.server.worker import Worker
from sglang.semi_pd.utils import InstanceRole
from sglang.semi_pd.workers.succession_messages import (
    HasLeft,
    IsIntroduced,
    Recover,
    Rehearsed,
)

if TYPE_CHECKING:
    from sglang.semi_pd.server.switchboard import Switchboard, SwitchNews
    from sglang.semi_pd.server.worker_group import WorkerGroup
    from sglang.semi_pd.sm_allocation import SMAllocation

logger = logging.getLogger(__name__)

REHEARSAL_TIMEOUT_S = 5.0
"""Then the switch comes all the same, if the new workers are alive: it takes longer."""
SILENCE_S = 3.0
_REHEARSAL: frozenset[type] = frozenset((IsIntroduced, Rehearsed))
LEAVE_TIMEOUT_S = 60.0


class Rotation:
    """Stages: standbys become ready, they rehearse, the switch: the old pair leaves.

    Attributes:
        phases_s: seconds each stage took, by name.
        is_switching: the new pair gets what arrives.
        has_switched: the old pair has nothing left; it ends as it likes.
        must_recover: why the instance has to be recovered; empty if it need not.
    """

    def __init__(
        self,
        allocation: SMAllocation,
        done: Future[Rotation],
        group: WorkerGroup,
        switchboard: Switchboard,
        *,
        standby_timeout_s: float,
    ) -> None:
        self._allocation, self._done = allocation, done
        self._group, self._switchboard = group, switchboard
        self._standby_timeout_s = standby_timeout_s
        self._not_ready: list[Worker] = []
        self._to_leave = 0
        self.has_switched = False
        self._to_rehearse: frozenset[type] = frozenset()
        self._pulse: Pulse | None = None
        self._stage_began = time.monotonic()
        self.is_switching = False
        self.is_over = False
        self.must_recover = ""
        self.phases_s: dict[str, float] = {}

    def begin(self) -> None:
        """Start the standbys."""
        group = self._group
        try:
            standby = group.launch_pair(self._allocation, is_standby=True)
        except SemiPDError as error:
            self._refuse(error)
            return
        group.standby = standby
        self._switchboard.prepare(standby.generation)
        self._not_ready = list(standby.workers)

    def awaited(self) -> list[Any]:
        """What to wait for besides the end of a process."""
        return [worker.ready for worker in self._not_ready]

    def note(self, message: SwitchNews) -> None:
        """Something that a stage waits for has happened."""
        if isinstance(message, HasLeft):
            if message.generation == self._group.pair.generation:
                self._to_leave -= 1
                self._switchboard.begin_again(message.unfinished)
        elif (
            self._group.standby is not None
            and message.generation == self._group.standby.generation
        ):
            self._to_rehearse -= {type(message)}

    def advance(self) -> None:
        """Look how far the stage is; go on to the next one, or fail."""
        try:
            if self.is_switching:
                self._await_old_pair()
            elif self._pulse is not None:
                self._await_rehearsal(self._pulse)
            else:
                self._await_standbys()
        except SemiPDError as error:
            self._fail(error)

    def end(self, why: str) -> None:
        """Before the switch: there will be none."""
        self._fail(RotationError(f"{self._allocation} is not in force", why=why))

    def abandon(self, why: str) -> None:
        """It ends where it is; the split stays what it was."""
        if self._pulse is not None:
            self._pulse.close()
        self._done.set_exception(
            RotationError(f"{self._allocation} is not in force", why=why)
        )

    def _await_standbys(self) -> None:
        for worker in [w for w in self._not_ready if w.ready.poll()]:
            if not isinstance(worker.hear(), Phase):
                self._not_ready.remove(worker)
        if self._not_ready:
            if time.monotonic() - self._stage_began > self._standby_timeout_s:
                late = ", ".join(worker.spec.title for worker in self._not_ready)
                limit = f"{self._standby_timeout_s:g} s"
                raise self._not_in_force(f"{late} was not ready within {limit}")
            return
        standby = self._group.standby
        assert standby is not None, "begin comes first"
        self._group.partition.verify([worker.pid for worker in standby.workers])
        self._end_stage("standby")
        self._pulse, self._to_rehearse = Pulse(standby.workers), _REHEARSAL
        self._switchboard.rehearse(standby.generation)

    def _await_rehearsal(self, pulse: Pulse) -> None:
        standby = self._group.standby
        assert standby is not None, "begin comes first"
        for worker in standby.workers:
            if worker.has_ended:
                raise self._not_in_force(f"{worker.spec.title} ended in its rehearsal")
        silent = pulse.silent(SILENCE_S)
        if self._to_rehearse:
            took = time.monotonic() - self._stage_began
            if took > self._standby_timeout_s:
                title = (silent or standby.workers[0]).spec.title
                raise self._not_in_force(f"{title} stood still in its rehearsal")
            patience = min(REHEARSAL_TIMEOUT_S, self._standby_timeout_s)
            if took < patience or silent is not None:
                return
            late = ", ".join(one.__name__ for one in self._to_rehearse)
            logger.warning("The new workers were not rehearsed in time: %s", late)
        pulse.close()
        self._end_stage("rehearsal")
        self._to_leave = 2
        self.is_switching = True
        self._switchboard.switch_to(standby.generation)

    def _await_old_pair(self) -> None:
        old, new = self._group.pair, self._group.standby
        assert new is not None, "begin comes first"
        for worker in new.workers:
            if worker.has_ended:
                self.must_recover = f"{worker.spec.title} ended during the switch"
                return
        if not self.has_switched and not self._to_leave:
            # Clients need not wait until the processes have ended.
            self.has_switched = True
            self._switchboard.finish_switch()
            self._end_stage("switch")
        is_late = time.monotonic() - self._stage_began > LEAVE_TIMEOUT_S
        if not self.has_switched:
            if is_late:
                self.must_recover = "the old workers did not leave"
            return
        if not all(worker.has_ended for worker in old.workers):
            if is_late:
                for worker in old.workers:
                    worker.process.kill()
            return
        self._end_stage("end of the old workers")
        self._group.pair, self._group.standby = new, None
        for worker in old.workers:
            worker.close()
        self.is_over = True
        self._done.set_result(self)

    def _not_in_force(self, why: str) -> RotationError:
        return RotationError(
            f"{self._allocation} is not in force",
            why=why,
            mend="see the last lines of the new workers in the log",
        )

    def _fail(self, error: SemiPDError) -> None:
        """Before the switch: end the standbys, and nothing has happened."""
        standby, self._group.standby = self._group.standby, None
        assert standby is not None, "begin comes first"
        if self._pulse is not None:
            self._pulse.close()
        standby.kill()
        self._switchboard.discard(standby.generation)
        gone = Recover(frozenset([standby.generation]), [])
        self._switchboard.send(InstanceRole.PREFILL, gone)
        self._refuse(error)

    def _refuse(self, error: SemiPDError) -> None:
        """Tell who asked."""
        self.is_over = True
        if not isinstance(error, RotationError):
            error = RotationError(
                f"{self._allocation} is not in force",
                why=f"{error.what}: {error.why}" if error.why else error.what,
                mend=error.mend,
            )
        # Its traceback would keep this rotation, and what its workers have open.
        self._done.set_exception(error.with_traceback(None))

    def _end_stage(self, name: str) -> None:
        now = time.monotonic()
        self.phases_s[name] = now - self._stage_began
        self._stage_began = now


class SplitByRotation:
    """Moves a split that is fixed when a process starts: new processes take over.

    Args:
        rotate: begins one move.
        offered_splits: the only ones that new processes can serve; empty if any.
    """

    can_move = True
    move_cost_s = 10.0

    def __init__(
        self,
        rotate: Callable[[SMAllocation], Future[Rotation]],
        offered_splits: tuple[SMAllocation, ...] = (),
    ) -> None:
        self._rotate, self.offered_splits = rotate, offered_splits

    def apply(self, allocation: SMAllocation) -> str:
        """Return when a new pair serves with ``allocation``: what each stage took.

        Raises:
            RotationError: it does not; the old pair serves on.
        """
        rotation = self._rotate(allocation).result()
        return ", ".join(f"{n} {s:.2f} s" for n, s in rotation.phases_s.items())
