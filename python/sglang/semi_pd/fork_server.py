# SPDX-License-Identifier: Apache-2.0
"""Processes that need not import SGLang: forked from one that has.

Importing SGLang takes tens of seconds; a server of three processes would pay it three
times, and so would every new worker of a rotation. Python's fork server pays it once,
in parallel with the main process's own imports if it is started early enough. It must
stay free of CUDA: a forked process cannot use a CUDA context of its parent.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, popen_forkserver, spawn
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any

PRELOAD = "sglang.semi_pd.fork_server_imports"


def start() -> None:
    """Start the fork server, once per process; returns at once, it imports by itself.

    Must be called from a thread that lives as long as the process: the children of a
    thread that ends are killed with it (``PR_SET_PDEATHSIG``).
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload([PRELOAD])
    forkserver.ensure_running()


class _Launch(popen_forkserver.Popen):  # type: ignore[misc]
    """Starts a child that does not run the user's main module again.

    A script without ``if __name__ == "__main__"`` may use the coordinator: our
    processes need nothing from it.
    """

    def _launch(self, process_obj: Any) -> None:
        with _main_module_left_out():
            super()._launch(process_obj)  # type: ignore[misc]


class ForkedProcess(ForkServerProcess):
    """A ``multiprocessing.Process`` of the fork server."""

    @staticmethod
    def _Popen(process_obj: Any) -> _Launch:  # noqa: N802 - multiprocessing's name
        return _Launch(process_obj)


def launch(target: Any, *args: Any, name: str) -> tuple[ForkedProcess, Connection]:
    """Run ``target(*args, ready)`` in a new process.

    Returns:
        The process, and the end of a pipe on which it says that it is ready; the pipe
        ends with the process.
    """
    reader, writer = multiprocessing.Pipe(duplex=False)
    process = ForkedProcess(target=target, args=(*args, writer), name=name)
    process.start()
    writer.close()
    return process, reader


@contextmanager
def _main_module_left_out() -> Iterator[None]:
    original = spawn.get_preparation_data

    def without_main(name: str) -> dict[str, Any]:
        data = original(name)
        data.pop("init_main_from_name", None)
        data.pop("init_main_from_path", None)
        return data

    spawn.get_preparation_data = without_main
    try:
        yield
    finally:
        spawn.get_preparation_data = original
