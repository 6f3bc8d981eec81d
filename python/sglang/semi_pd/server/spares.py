# SPDX-License-Identifier: Apache-2.0
"""Spare processes: everything imported, no GPU touched, waiting to become a worker.

Where workers cannot be forked (see ``fork_server``), importing SGLang is most of what a
new worker takes. A spare has done it beforehand. What a worker is, its environment and
so its share of the GPU reach it as a task: CUDA reads them when it is first used, and
until then a spare is like a fresh interpreter. One that did touch a GPU is not used.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from sglang.semi_pd.server import fork_server, nvml_answers

logger = logging.getLogger(__name__)

TITLE = "sglang::semi_pd_spare"
CLOSE_TIMEOUT_S = 5.0
CUDA_DEVICE = "/dev/nvidia-uvm"
"""A process has it open once it has used CUDA; NVML leaves it alone."""


class _Task(NamedTuple):
    """What a spare is to become."""

    target: Callable[..., None]
    args: tuple[Any, ...]
    environment: dict[str, str]


@dataclass(eq=False)
class _Spare:
    """One waiting process; ``tasks`` says once that it has imported everything."""

    process: BaseProcess
    tasks: Connection
    ready: Connection
    has_imported: bool = False

    @classmethod
    def start(cls, preload: str) -> _Spare:
        tasks, inbox = multiprocessing.Pipe()
        ready, writer = multiprocessing.Pipe(duplex=False)
        process = fork_server.FreshProcess(
            target=_wait_for_task, args=(inbox, writer, preload), name=TITLE
        )
        process.start()
        inbox.close()
        writer.close()
        return cls(process, tasks, ready)

    def waits(self) -> bool:
        """Whether it has imported everything, and may be given a task.

        Raises:
            EOFError: it is gone, or has touched a GPU.
        """
        if not self.has_imported and self.tasks.poll():
            touched: tuple[str, ...] = self.tasks.recv()
            if touched:
                logger.warning("A spare process opened %s; not used", touched)
                raise EOFError
            self.has_imported = True
        if not self.process.is_alive():
            raise EOFError
        return self.has_imported

    def close(self) -> None:
        """End it; one that waits ends by itself when its pipe does."""
        self.tasks.close()
        self.ready.close()
        self.process.join(CLOSE_TIMEOUT_S if self.has_imported else 0)
        self.process.kill()
        self.process.join()


class SparePool:
    """Starts processes: from spares as long as there are any that wait, else afresh.

    Args:
        size: spares that ``refill`` brings it to; 0 for none.
        preload: the module that imports what workers need.
    """

    def __init__(self, size: int, preload: str = fork_server.PRELOAD) -> None:
        self.size, self._preload = size, preload
        self._spares: list[_Spare] = []

    @property
    def waiting(self) -> int:
        """Spares that could be used now."""
        return len(self._waiting())

    def refill(self) -> None:
        """Start what is missing; returns at once, a spare takes its time to import.

        To be called from a thread that lives as long as its workers are to live: they
        are killed when it ends (``PR_SET_PDEATHSIG``).
        """
        self._waiting()  # lets go of those that are gone
        while len(self._spares) < self.size:
            self._spares.append(_Spare.start(self._preload))

    def launch(
        self,
        target: Callable[..., None],
        *args: Any,
        name: str,
        environment: dict[str, str],
    ) -> tuple[BaseProcess, Connection]:
        """As ``fork_server.launch``, from a spare if one waits."""
        for spare in self._waiting():
            self._spares.remove(spare)
            with suppress(BrokenPipeError):
                spare.tasks.send(_Task(target, args, environment))
                spare.tasks.close()
                spare.process.name = name
                return spare.process, spare.ready
            spare.close()
        return fork_server.launch(target, *args, name=name, environment=environment)

    def close(self) -> None:
        """End every spare."""
        while self._spares:
            self._spares.pop().close()

    def _waiting(self) -> list[_Spare]:
        """Those that wait; one that never will is let go."""
        waiting = []
        for spare in list(self._spares):
            try:
                if spare.waits():
                    waiting.append(spare)
            except EOFError:
                self._spares.remove(spare)
                spare.close()
        return waiting


def _wait_for_task(inbox: Connection, ready: Connection, preload: str) -> None:
    """The life of a spare until it is somebody."""
    import setproctitle

    setproctitle.setproctitle(TITLE)
    with nvml_answers.instead_of_cuda():
        importlib.import_module(preload)
    inbox.send(_touched_gpus())
    try:
        task: _Task = inbox.recv()
    except EOFError:
        return  # the instance has ended, or has no need of it
    inbox.close()
    os.environ.clear()
    os.environ.update(task.environment)
    task.target(*task.args, ready)


def _touched_gpus() -> tuple[str, ...]:
    """What this process has open and only CUDA opens."""
    found = set()
    for entry in os.scandir("/proc/self/fd"):
        with suppress(OSError):
            found.add(os.readlink(entry.path))
    return tuple(sorted(name for name in found if name.startswith(CUDA_DEVICE)))
