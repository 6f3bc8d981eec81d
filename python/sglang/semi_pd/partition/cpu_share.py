# SPDX-License-Identifier: Apache-2.0
"""On a machine without a GPU, a worker's share of it: its cores and its threads."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import torch
from sglang.semi_pd.errors import RotationError
from sglang.semi_pd.sm_allocation import SMAllocation
from sglang.semi_pd.utils import InstanceRole
from sglang.semi_pd.workers.messages import TakeCores

MOVE_TIMEOUT_S = 10.0
POLL_S = 0.002


def cores_for(
    role: InstanceRole, allocation: SMAllocation, cores: Sequence[int] | None = None
) -> frozenset[int]:
    """The cores a process of ``role`` may use.

    Prefill counts from the first core, decode from the last, so that shares that sum to
    no more than 100 overlap only when rounding or a single core makes them. Every role
    gets a core at least; the resident, which computes nothing, is not confined.

    Args:
        cores: those to divide; by default those this process may run on.
    """
    available = sorted(os.sched_getaffinity(0)) if cores is None else sorted(cores)
    if not role.is_worker:
        return frozenset(available)
    share = allocation.percentage_of(role) / 100
    count = min(len(available), max(1, round(share * len(available))))
    is_prefill = role is InstanceRole.PREFILL
    return frozenset(available[:count] if is_prefill else available[-count:])


def take_cores(cores: frozenset[int]) -> None:
    """Confine this process, all its threads included, to ``cores``."""
    torch.set_num_threads(len(cores))
    for thread in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):  # it has ended since it was listed
            os.sched_setaffinity(int(thread), cores)


class CoreSplit:
    """Moves the split on a CPU host: each worker takes its cores between two batches.

    Args:
        send: delivers a message to the worker of a role.
        pids: the processes of a role.
        current: the split in force.
    """

    can_move = True
    move_cost_s = 0.05  # both workers end the batch they are at
    offered_splits: tuple[SMAllocation, ...] = ()

    def __init__(
        self,
        send: Callable[[InstanceRole, TakeCores], None],
        pids: Callable[[InstanceRole], Iterable[int]],
        current: Callable[[], SMAllocation],
    ) -> None:
        self._send, self._pids, self._current = send, pids, current

    def apply(self, allocation: SMAllocation) -> None:
        """Return when both workers run on their new cores.

        Raises:
            RotationError: a worker did not take them in time; both were told to go
                back to those of the split in force.
        """
        wanted = self._tell(allocation)
        deadline = time.monotonic() + MOVE_TIMEOUT_S
        while not all(self._has(role, cores) for role, cores in wanted.items()):
            if time.monotonic() > deadline:
                self._tell(self._current())
                raise RotationError(
                    f"{allocation} is not in force",
                    why="a worker did not take its cores in time",
                    mend="see whether it is busy with a very long prompt",
                )
            time.sleep(POLL_S)

    def _tell(self, allocation: SMAllocation) -> dict[InstanceRole, frozenset[int]]:
        workers = [role for role in InstanceRole if role.is_worker]
        wanted = {role: cores_for(role, allocation) for role in workers}
        for role, cores in wanted.items():
            self._send(role, TakeCores(cores))
        return wanted

    def _has(self, role: InstanceRole, cores: frozenset[int]) -> bool:
        try:
            return all(os.sched_getaffinity(pid) == cores for pid in self._pids(role))
        except ProcessLookupError:  # its successor has other cores
            return False
