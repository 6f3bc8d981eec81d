# SPDX-License-Identifier: Apache-2.0
"""One started process, and the pair of workers that serves together."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from sglang.semi_pd.errors import WorkerStartError
from sglang.semi_pd.launch import start_progress
from sglang.semi_pd.utils import END_SIGNAL, InstanceRole
from sglang.semi_pd.workers.worker_spec import WorkerSpec

logger = logging.getLogger(__name__)

JOIN_TIMEOUT_S = 10.0
SHARED_MEMORY = Path("/dev/shm")
SHARED_BY = "sgl_shm_*_{pid}_*"
"""How SGLang names what a process makes there (``make_shm_name``)."""


@dataclass(slots=True, eq=False)
class Worker:
    """A started process and the pipe on which it says that it is ready."""

    spec: WorkerSpec
    process: BaseProcess
    ready: Connection
    pid: int = field(init=False)
    pidfd: int = field(init=False)

    def __post_init__(self) -> None:
        assert self.process.pid is not None, "the process was started"
        self.pid = self.process.pid
        try:
            self.pidfd = os.pidfd_open(self.pid)
        except OSError:
            # Nobody has it yet: nobody else would end it.
            self.process.kill()
            self.process.join(JOIN_TIMEOUT_S)
            self.ready.close()
            raise

    @property
    def is_closed(self) -> bool:
        """Whether it was let go of."""
        return self.pidfd < 0

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone, or a zombie."""
        return self.is_closed or bool(wait([self.pidfd], timeout=0))

    @property
    def name(self) -> str:
        """Its role, and its rank where there are several."""
        return self.spec.title.removeprefix("sglang::semi_pd_")

    def hear(self) -> Any:
        """A ``Phase`` of its start, or the last it says: what it has to tell of itself.

        Raises:
            SemiPDError: it ended instead.
        """
        try:
            said = self.ready.recv()
        except EOFError:
            self.process.join(JOIN_TIMEOUT_S)
            raise WorkerStartError(
                f"{self.spec.title} ended before it was ready",
                why=f"exit code {self.process.exitcode}; its own lines above say more",
                mend="-9 is mostly the kernel short of memory: see dmesg",
            ) from None
        if isinstance(said, start_progress.Failure):
            raise said.as_error(self.spec.title)
        return said

    def tell_to_end(self) -> None:
        """It ends once it has nothing to do."""
        with suppress(ProcessLookupError):  # it has just ended
            signal.pidfd_send_signal(self.pidfd, END_SIGNAL)

    def close(self) -> None:
        """Let go of an ended process, or of one that was killed and is not gone yet."""
        self.process.join(JOIN_TIMEOUT_S)
        if self.process.exitcode is not None:
            self.process.close()  # its pipes, which else stay until they are collected
        else:
            logger.error(
                "%s (pid %d) has not ended within %g s",
                self.spec.title,
                self.pid,
                JOIN_TIMEOUT_S,
            )
        self.ready.close()
        pidfd, self.pidfd = self.pidfd, -1
        os.close(pidfd)
        # A killed process leaves what it shared with the other ranks.
        left = SHARED_MEMORY.glob(SHARED_BY.format(pid=self.pid))
        for path in (self.spec.heartbeat_path, self.spec.share_path, *left):
            path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class WorkerPair:
    """Prefill and decode of one generation: a process of each for every rank."""

    generation: int
    workers: tuple[Worker, ...]

    @property
    def pids(self) -> frozenset[int]:
        """Of all its processes."""
        return frozenset(worker.pid for worker in self.workers)

    def kill(self) -> None:
        """End every process at once; when it returns, all are gone.

        One that the kernel holds for longer, as a GPU's driver may, is named in the
        log: it runs none of its code any more.
        """
        for worker in self.workers:
            worker.process.kill()
        for worker in self.workers:
            worker.close()


def wait_ready(
    workers: Iterable[Worker], timeout_s: float | None = None
) -> dict[InstanceRole, Any]:
    """Block until every process is ready; returns what rank 0 of each role said.

    Raises:
        WorkerStartError: one ended before it was ready, or took too long.
    """
    said: dict[InstanceRole, Any] = {}
    waiting = list(workers)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while waiting:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        spoke = wait([worker.ready for worker in waiting], left)
        if not spoke:
            raise _too_late(waiting, timeout_s or 0.0)
        for worker in [w for w in waiting if w.ready in spoke]:
            info = worker.hear()
            if isinstance(info, start_progress.Phase):
                start_progress.enter(info.doing, worker.name)
                continue
            waiting.remove(worker)
            start_progress.leave("ready", worker.name)
            logger.info("%s is ready (pid %d)", worker.spec.title, worker.pid)
            if worker.spec.tp_rank == 0:
                said[worker.spec.role] = info
    return said


def _too_late(waiting: Sequence[Worker], timeout_s: float) -> WorkerStartError:
    titles = ", ".join(worker.spec.title for worker in waiting)
    return WorkerStartError(
        f"{titles} did not become ready within {timeout_s:.0f} s",
        why="it hangs, or the machine is very busy",
        mend="see its last lines in the log",
    )
