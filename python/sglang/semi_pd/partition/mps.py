# SPDX-License-Identifier: Apache-2.0
"""NVIDIA MPS: a private daemon for one instance, and the environment of its clients.

The daemon lives in the run directory and is
nobody else's: the default pipe directory is never used, and one inherited from the
environment is never joined by accident. The resident stays outside MPS, so that what
ends the clients cannot take weights and KV cache with it.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import time
from pathlib import Path

from sglang.semi_pd.errors import SemiPDError
from sglang.semi_pd.launch import mps_daemons

logger = logging.getLogger(__name__)

CONTROL = "nvidia-cuda-mps-control"
START_TIMEOUT_S = 10.0
COMMAND_TIMEOUT_S = 20.0
LONGEST_PIPE_DIRECTORY = 80
"""Bytes; the daemon's sockets lie in it and must stay under the kernel's 107."""


class MPSError(SemiPDError):
    """The MPS daemon cannot be started, or does not answer."""

    see = "split-and-workers"


class MPSDaemon:
    """One control daemon, started and ended with the instance."""

    def __init__(self, directory: Path) -> None:
        self._control = find_control()
        self._pipes = directory / "mps"
        self._logs = directory / "mps-log"

    def start(self) -> None:
        """Start the daemon and wait until it answers.

        Raises:
            MPSError: it does not, and has been ended.
        """
        # After a fault another daemon is started in the same place: what the old one
        # left there must not pass for an answer.
        shutil.rmtree(self._pipes, ignore_errors=True)
        self._pipes.mkdir(mode=0o700)
        self._logs.mkdir(mode=0o700, exist_ok=True)
        if len(os.fsencode(self._pipes)) > LONGEST_PIPE_DIRECTORY:
            raise _error(f"{self._pipes} is too long a path for its sockets")
        try:
            self._start_control()
            self._await_control()
        except MPSError:
            # It may run all the same, as nobody's child: without pipes, or late.
            for daemon in mps_daemons.in_directory(self._pipes.parent):
                mps_daemons.end(daemon)
            raise
        logger.info("MPS control daemon started in %s", self._pipes)

    def stop(self) -> None:
        """End the daemon; its clients must have ended."""
        try:
            self._run([self._control], "quit\n")
        except MPSError as error:
            logger.warning("The MPS daemon did not end: %s", error)

    def clients(self) -> frozenset[int]:
        """Process ids of every client, as the daemon knows them.

        Raises:
            MPSError: the daemon does not answer.
        """
        servers = self._run([self._control], "get_server_list\n").split()
        return frozenset(
            int(pid)
            for server in servers
            for pid in self._run([self._control], f"get_client_list {server}\n").split()
        )

    def client_environment(self, percentage: int) -> dict[str, str]:
        """What a worker's environment needs, before its first CUDA call."""
        return {
            "CUDA_MPS_PIPE_DIRECTORY": str(self._pipes),
            "CUDA_MPS_LOG_DIRECTORY": str(self._logs),
            "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": str(percentage),
        }

    def outsider_environment(self) -> dict[str, str]:
        """What keeps a process outside MPS: a pipe directory with no daemon in it."""
        return {"CUDA_MPS_PIPE_DIRECTORY": str(self._logs)}

    def _start_control(self) -> None:
        # Not through a pipe: the daemon would keep it open and never end it.
        try:
            done = subprocess.run(
                [self._control, "-d"],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=COMMAND_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _error(str(error)) from error
        if done.returncode:
            raise _error(f"{CONTROL} -d ended with {done.returncode}")

    def _await_control(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (self._pipes / "control").exists():
            if time.monotonic() > deadline:
                raise _error(f"no control pipe; see {self._logs}/control.log")
            time.sleep(0.02)

    def _environment(self) -> dict[str, str]:
        environment = {**os.environ, **self.client_environment(100)}
        del environment["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"]
        # A daemon that sees GPU 2 alone calls it 0, and clients that are told to see
        # GPU 2 as well would see none. So the daemon sees all, its clients theirs.
        environment.pop("CUDA_VISIBLE_DEVICES", None)
        return environment

    def _run(self, command: list[str], typed: str) -> str:
        try:
            done = subprocess.run(
                command,
                input=typed,
                env=self._environment(),
                capture_output=True,
                text=True,
                timeout=COMMAND_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _error(str(error)) from error
        if done.returncode:
            raise _error(done.stderr.strip() or done.stdout.strip())
        return done.stdout


def find_control() -> str:
    """Absolute path of the control program.

    Raises:
        MPSError: there is none.
    """
    path = shutil.which(CONTROL)
    if path is None:
        raise MPSError(
            "MPS is not available",
            why=f"{CONTROL} is not on the PATH",
            mend="install the driver's MPS tools, or use --sm-partition-backend none",
        )
    return os.path.abspath(path)


def _error(why: str) -> MPSError:
    return MPSError(
        "The MPS daemon does not work",
        why=why,
        mend="check the rights to start it, or use --sm-partition-backend none",
    )
