# SPDX-License-Identifier: Apache-2.0
"""Moves the split on a GPU by green contexts: each worker changes its stream.

The main process's side. No process restarts and nothing is drained: a worker's next
iteration runs on its new SMs, after what the last one has queued.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from sglang.semi_pd.errors import RotationError
from sglang.semi_pd.partition.share_record import ShareRecord
from sglang.semi_pd.sm_allocation import SMAllocation
from sglang.semi_pd.utils import InstanceRole
from sglang.semi_pd.workers.messages import TakeSMs

MOVE_TIMEOUT_S = 10.0
POLL_S = 0.0005


class GreenSplit:
    """Tells both workers to take their SMs of a split.

    Args:
        send: delivers a message to the worker of a role.
        records: where the processes of a role report what they took.
        current: the split in force.
    """

    can_move = True
    move_cost_s = 1e-4  # two events on each worker's streams, decision 12
    offered_splits: tuple[SMAllocation, ...] = ()  # any; rounded to units of SMs

    def __init__(
        self,
        send: Callable[[InstanceRole, TakeSMs], None],
        records: Callable[[InstanceRole], Iterable[Path]],
        current: Callable[[], SMAllocation],
    ) -> None:
        self._send, self._records, self._current = send, records, current
        self._serial = 0

    def apply(self, allocation: SMAllocation) -> None:
        """Return when the next iteration of both workers runs on its new SMs.

        Raises:
            RotationError: a worker did not take them in time; both were told to go
                back to the split in force.
        """
        late = self._tell_and_await(allocation)
        if late:
            self._tell(self._current())
            raise RotationError(
                f"{allocation} is not in force",
                why=f"{late} did not take its SMs within {MOVE_TIMEOUT_S:.0f} s",
                mend="see whether it is busy with a very long prompt",
            )

    def _tell_and_await(self, allocation: SMAllocation) -> str:
        self._tell(allocation)
        waiting = {
            path: ShareRecord(path)
            for role in InstanceRole
            if role.is_worker
            for path in self._records(role)
        }
        deadline = time.monotonic() + MOVE_TIMEOUT_S
        try:
            while late := [
                path.name
                for path, record in waiting.items()
                if record.read().serial < self._serial
            ]:
                if time.monotonic() > deadline:
                    return late[0]
                time.sleep(POLL_S)
        finally:
            for record in waiting.values():
                record.close()
        return ""

    def _tell(self, allocation: SMAllocation) -> None:
        self._serial += 1
        message = TakeSMs(self._serial, allocation)
        for role in InstanceRole:
            if role.is_worker:
                self._send(role, message)
