# SPDX-License-Identifier: Apache-2.0
"""A server in a process of its own: start it, watch it come up, look at it, stop it.

The server leads its own session, which its children inherit. So every process it ever
made can be found, and Ctrl-C in the terminal reaches the example only, which then stops
the server in good order.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from typing_extensions import Self

START_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 60.0
GRACE_S = 5.0
POLL_S = 0.2
SILENCE_S = 15.0

PHASES = (
    ("Init torch distributed begin", "imports done"),
    ("Load weight begin", "loading the weights"),
    ("KV Cache is allocated", "KV cache allocated"),
    ("sglang::semi_pd_resident is ready", "resident ready"),
    ("sglang::semi_pd_prefill is ready", "prefill worker ready"),
    ("sglang::semi_pd_decode is ready", "decode worker ready"),
    ("Uvicorn running on", "HTTP server up, warming up"),
    ("The server is fired up", "first answer of its own"),
)
"""Parts of log lines, in their usual order, and what they mean."""

FIRST_PHASE = "importing SGLang, which takes most of the time"

Report = Callable[[str, float], None]
"""Called with a phase and the seconds since the start."""


class _Progress:
    """Reports each phase once, and now and then that one takes its time."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._shown = 0
        self._last_s = 0.0

    def show(self, phases: Sequence[str], now_s: float) -> None:
        """Report what is new of ``phases``, the first ones of which are known."""
        for phase in phases[self._shown :]:
            self._report(phase, now_s)
            self._last_s = now_s
        self._shown = len(phases)
        if now_s - self._last_s > SILENCE_S:
            self._report(f"still: {phases[-1]}", now_s)
            self._last_s = now_s


class ServerFailedError(RuntimeError):
    """The server ended, or did not come up in time."""


class ServerProcess:
    """``sglang.launch_server`` with flags of your choice.

    Args:
        model: folder of the model.
        flags: further flags, such as ``--enable-semi-pd``.
        log: file that takes everything the server prints.
        port: where it serves; by default a free one.
    """

    def __init__(
        self, model: Path, flags: Sequence[str], *, log: Path, port: int | None = None
    ) -> None:
        self.port = port or free_port()
        self.log = log
        self.ready_s = 0.0
        self._command = [sys.executable, "-m", "sglang.launch_server"]
        self._command += ["--model-path", str(model), "--port", str(self.port), *flags]
        self._process: subprocess.Popen[bytes] | None = None
        self._shared_inodes: set[int] = set()

    def __enter__(self) -> Self:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._started = time.monotonic()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.leftovers()

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def command(self) -> str:
        """What was started, as one would type it."""
        return " ".join(["python", *self._command[1:]])

    def wait_ready(
        self, report: Report | None = None, *, timeout_s: float = START_TIMEOUT_S
    ) -> float:
        """Wait until ``/health`` answers; returns the seconds since the start.

        Raises:
            ServerFailedError: with the end of the log.
        """
        progress = _Progress(report) if report else None
        while not self._is_healthy():
            waited_s = time.monotonic() - self._started
            code = self._running().poll()
            if code is not None:
                raise self._failure(f"the server ended with exit code {code}")
            if waited_s > timeout_s:
                raise self._failure(f"not ready after {timeout_s:.0f} s")
            if progress:
                progress.show(self._phases(), waited_s)
            time.sleep(POLL_S)
        self.ready_s = time.monotonic() - self._started
        self._note_shared_files()
        return self.ready_s

    def get(self, path: str) -> Any:
        """The decoded answer to one GET request.

        Raises:
            ServerFailedError: it is not 200.
        """
        try:
            with urllib.request.urlopen(self.url + path, timeout=30) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            raise ServerFailedError(f"GET {path}: {error.code}") from error

    def processes(self) -> list[psutil.Process]:
        """Every living process of the server, the main one first."""
        session, found = self._running().pid, []
        for process in psutil.process_iter():
            with suppress(psutil.Error, ProcessLookupError):
                is_member = os.getsid(process.pid) == session
                if is_member and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return sorted(found, key=lambda process: process.pid)

    @property
    def pid(self) -> int:
        """The main process."""
        return self._running().pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._running().poll()

    def stop(self, grace_s: float = STOP_TIMEOUT_S) -> int:
        """SIGTERM, and what outlives it is killed; returns the exit code.

        Args:
            grace_s: for the requests that are under way.
        """
        process = self._running()
        if process.poll() is None:
            self._note_shared_files()
            process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            return process.wait(grace_s)
        process.kill()
        return process.wait()

    def leftovers(self) -> list[str]:
        """What a stopped server should have removed and has not; kills processes."""
        deadline = time.monotonic() + GRACE_S
        while self.processes() and time.monotonic() < deadline:
            time.sleep(POLL_S)
        found = []
        for process in self.processes():
            with suppress(psutil.Error):
                found.append(f"process {process.pid} {process.name()}")
                process.kill()
        found += [
            entry.path
            for entry in os.scandir("/dev/shm")
            if entry.inode() in self._shared_inodes
        ]
        for base in _run_directories():
            found += map(str, base.glob(f"run-{self._running().pid}-*"))
        return found

    def _phases(self) -> list[str]:
        """The phases entered so far, in the order of the log."""
        text = self.log.read_text(errors="replace")
        found = sorted((text.find(part), phase) for part, phase in PHASES)
        return [FIRST_PHASE, *(phase for place, phase in found if place >= 0)]

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + "/health", timeout=10) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def _note_shared_files(self) -> None:
        """Remember the files of /dev/shm that the server has mapped.

        By inode: a semaphore's mapping keeps the name of a temporary file that it was
        linked from.
        """
        for process in self.processes():
            with suppress(OSError):
                lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
                self._shared_inodes |= {
                    int(line.split(maxsplit=5)[4])
                    for line in lines
                    if "/dev/shm/" in line
                }

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "use it in a with statement"
        return self._process

    def _failure(self, what: str) -> ServerFailedError:
        lines = self.log.read_text(errors="replace").splitlines()[-20:]
        return ServerFailedError("\n".join([f"{what}; end of {self.log}:", *lines]))


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run_directories() -> list[Path]:
    """Where Semi-PD may keep the directory of a running instance."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    bases = [Path(f"/tmp/sglang-semi-pd-{os.geteuid()}")]
    return [*bases, Path(runtime) / "sglang-semi-pd"] if runtime else bases
