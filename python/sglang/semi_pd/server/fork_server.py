# SPDX-License-Identifier: Apache-2.0
"""How processes are started: forked from one that has imported SGLang, or afresh.

Importing SGLang takes tens of seconds; a server of three processes would pay it three
times, and again at each rotation. Python's fork server pays it once, in parallel with
the main process's own imports if it is started early enough. A process that has used
CUDA cannot be forked, so SGLang's questions to the GPU are answered without it while it
is imported (``gpu_answers``). If its imports use a GPU all the same, processes are
spawned: fresh interpreters, which import side by side.
"""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing import (
    forkserver,
    popen_forkserver,
    popen_spawn_posix,
    resource_tracker,
    spawn,
)
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess, SpawnProcess
from multiprocessing.process import BaseProcess
from typing import Any

from sglang.semi_pd.launch.starting import SIGNALS
from sglang.semi_pd.utils import END_SIGNAL

logger = logging.getLogger(__name__)

PRELOAD = "_sglang_semi_pd_fork_server"


@functools.cache
def is_usable() -> bool:
    """Whether processes may be forked; asked of the fork server itself, once.

    Waits until it has imported everything.
    """
    reader, writer = multiprocessing.Pipe(duplex=False)
    with reader:
        process = ForkedProcess(target=_say_why_not, args=(writer,))
        try:
            process.start()
            writer.close()
            why_not: str = reader.recv()
            process.join()
        except (EOFError, OSError) as error:
            why_not = f"it has ended ({error!r})"
    if why_not:
        logger.warning("Processes are not forked from one that has SGLang: %s", why_not)
        kill()
    return not why_not


def _say_why_not(writer: Connection) -> None:
    import _sglang_semi_pd_fork_server

    with suppress(BrokenPipeError):  # Ctrl-C, and nobody waits for it any more
        writer.send(_sglang_semi_pd_fork_server.WHY_NOT)


def start() -> None:
    """Start the fork server, once per process; returns at once, it imports by itself.

    Must be called from a thread that lives as long as the process: the children of a
    thread that ends are killed with it (``PR_SET_PDEATHSIG``).
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload([PRELOAD])
    with _deaf_to_signals():
        forkserver.ensure_running()


def kill() -> None:
    """End the fork server, if there is one: by itself it would first import all."""
    pid = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class _Endable:
    def terminate(self) -> None:
        """As multiprocessing's, with the signal that our processes heed."""
        self._send_signal(END_SIGNAL)  # type: ignore[attr-defined]


class _Fork(_Endable, popen_forkserver.Popen):  # type: ignore[misc]
    def _launch(self, process_obj: Any) -> None:
        with _main_module_left_out(), _deaf_to_signals():
            super()._launch(process_obj)  # type: ignore[misc]


class _Spawn(_Endable, popen_spawn_posix.Popen):  # type: ignore[misc]
    def _launch(self, process_obj: Any) -> None:
        with _main_module_left_out(), _deaf_to_signals():
            super()._launch(process_obj)  # type: ignore[misc]


class _Child(BaseProcess):
    def run(self) -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        super().run()


class ForkedProcess(_Child, ForkServerProcess):
    """A child of the fork server that does not run the user's main module again.

    A script without ``if __name__ == "__main__"`` may use the coordinator: our
    processes need nothing from it.
    """

    @staticmethod
    def _Popen(process_obj: Any) -> _Fork:  # noqa: N802 - multiprocessing's name
        return _Fork(process_obj)


class FreshProcess(_Child, SpawnProcess):
    """As ``ForkedProcess``, but a new interpreter."""

    @staticmethod
    def _Popen(process_obj: Any) -> _Spawn:  # noqa: N802 - multiprocessing's name
        return _Spawn(process_obj)


def new_process(target: Any, *args: Any, name: str, method: str) -> BaseProcess:
    """A process that will run ``target(*args)``, not started yet.

    Args:
        method: ``auto``: forked if that is possible; ``spawn``: afresh.
    """
    forks = method == "auto" and is_usable()
    kind = ForkedProcess if forks else FreshProcess
    return kind(target=target, args=args, name=name)


def launch(
    target: Any, *args: Any, name: str, method: str, environment: dict[str, str]
) -> tuple[BaseProcess, Connection]:
    """Run ``target(*args, ready)`` in a new process.

    Args:
        method: as for ``new_process``.
        environment: a fresh interpreter has it from its first instruction, which CUDA
            and MPS need; a forked one must take it over itself.

    Returns:
        The process, and the end of a pipe on which it says that it is ready; the pipe
        ends with the process.
    """
    reader, writer = multiprocessing.Pipe(duplex=False)
    process = new_process(target, *args, writer, name=name, method=method)
    # Only where it must be: other threads of this process read the environment too.
    is_fresh = isinstance(process, FreshProcess)
    with _environment(environment) if is_fresh else nullcontext():
        process.start()
    writer.close()
    return process, reader


@contextmanager
def _environment(wanted: dict[str, str]) -> Iterator[None]:
    saved = dict(os.environ)
    os.environ.clear()
    os.environ.update(wanted)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(saved)


@contextmanager
def _deaf_to_signals() -> Iterator[None]:
    """Processes started meanwhile have Ctrl-C and SIGTERM blocked from their first
    instruction on.

    Both may reach all processes of a server. The main process takes them, lets requests
    finish, and ends the others.
    """
    resource_tracker.ensure_running()  # its start would unblock the signals again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
