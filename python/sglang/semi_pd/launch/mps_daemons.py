# SPDX-License-Identifier: Apache-2.0
"""MPS daemons that are not this server's.

CUDA programs join one without being asked. And one of ours outlives a main process that
was killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

from sglang.semi_pd.errors import ConfigError

CONTROL = "nvidia-cuda-mps-control"
PIPE_DIRECTORY = "CUDA_MPS_PIPE_DIRECTORY"
DEFAULT_PIPES = "/tmp/nvidia-mps"
QUIT_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class Daemon:
    """A control daemon and the directory of its pipes."""

    pid: int
    pipes: str


def visible() -> Iterator[Daemon]:
    """The control daemons of this user, or of all users for root."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            program = Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0]
            if os.path.basename(os.fsdecode(program)) != CONTROL:
                continue
            environ = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        prefix = f"{PIPE_DIRECTORY}=".encode()
        pipes = [one for one in environ.split(b"\0") if one.startswith(prefix)]
        path = pipes[0][len(prefix) :].decode(errors="replace") if pipes else ""
        yield Daemon(int(pid), path or DEFAULT_PIPES)


def running() -> Iterator[Daemon]:
    """Those that are not in a container of their own.

    There the same path is another directory, and whose server has died is not to be
    seen from outside.
    """
    for daemon in visible():
        with suppress(OSError):
            if os.path.samefile(f"/proc/{daemon.pid}/ns/pid", "/proc/self/ns/pid"):
                yield daemon


def in_directory(directory: Path) -> list[Daemon]:
    """The daemons whose pipes lie in the directory of an instance."""
    return [one for one in running() if Path(one.pipes).parent == directory]


def end(daemon: Daemon) -> None:
    """End a daemon whose clients have ended: it is nobody's child."""
    with suppress(ProcessLookupError, PermissionError):
        pidfd = os.pidfd_open(daemon.pid)
        try:
            _quit(daemon.pipes)
            if not wait([pidfd], QUIT_TIMEOUT_S):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                wait([pidfd], QUIT_TIMEOUT_S)
        finally:
            os.close(pidfd)


def _quit(pipes: str) -> None:
    with suppress(OSError, subprocess.TimeoutExpired):  # then it is killed
        subprocess.run(
            [CONTROL],
            input=b"quit\n",
            env={**os.environ, PIPE_DIRECTORY: pipes},
            capture_output=True,
            timeout=QUIT_TIMEOUT_S,
            check=False,
        )


def require_no_stranger(environ: Mapping[str, str]) -> None:
    """Refuse to serve where a process would join somebody else's daemon.

    Raises:
        ConfigError: with the commands that mend it.
    """
    inherited = environ.get(PIPE_DIRECTORY)
    if inherited:
        raise ConfigError(
            f"{PIPE_DIRECTORY}={inherited} is refused",
            why="it names an MPS daemon that is not ours; Semi-PD runs its own",
            mend=f"unset {PIPE_DIRECTORY} CUDA_MPS_ACTIVE_THREAD_PERCENTAGE",
        )
    for daemon in visible():
        if os.path.realpath(daemon.pipes) == DEFAULT_PIPES:
            raise ConfigError(
                f"an MPS daemon (pid {daemon.pid}) serves {DEFAULT_PIPES}",
                why="every CUDA program joins that one, Semi-PD's processes too",
                mend=f"end its programs, then run: echo quit | {CONTROL}",
            )
