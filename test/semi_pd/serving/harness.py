# SPDX-License-Identifier: Apache-2.0
"""Start, watch and stop a real server, and leave nothing behind.

A server runs in a session of its own, which its children inherit, so every process it
ever made can be found even after its parent died. Its temporary files and its run
directory lie in one private place, so what it leaves there can be listed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import process_table
import psutil
import requests
from free_ports import free_port
from workload import SERVER_ENVIRONMENT

REPOSITORY = Path(__file__).resolve().parents[3]
LAST_MOMENT_S = 5.0
START_TIMEOUT_S = 600.0
GRACE_S = 60.0

COMMON_FLAGS = (
    "--chunked-prefill-size=512",
    "--dtype=float32",
    "--random-seed=1",
    "--enable-metrics",
    "--log-level=info",
)
"""Flags of every server that is compared with another one."""


class ServerFailedError(AssertionError):
    """The server did not do what it had to; carries the end of its log."""


@dataclass(kw_only=True)
class Server:
    """One server process with all its children.

    ``ready_s`` and ``ready_cpu_s``: wall and processor time from the start until
    ``/health`` answered 200 for the first time.
    """

    name: str
    model: Path
    flags: Sequence[str] = ()
    command: Sequence[str] = (sys.executable, "-m", "sglang.launch_server")
    environment: dict[str, str] = field(default_factory=SERVER_ENVIRONMENT.copy)
    port: int = 0
    ready_s: float = 0.0
    ready_cpu_s: float = 0.0
    _process: subprocess.Popen[bytes] | None = None
    _pid: int = 0
    _place: Path | None = None
    _started: float = 0.0
    _seen_shm: set[str] = field(default_factory=set)

    @classmethod
    def attach(cls, name: str, port: int, model: Path) -> Server:
        """A server that somebody else started and will stop; to debug tests with."""
        server = cls(name=name, model=model, port=port)
        for connection in psutil.net_connections(kind="tcp"):
            listens = connection.status == psutil.CONN_LISTEN
            if listens and connection.laddr.port == port and connection.pid:
                server._pid = connection.pid
        if not server._pid:
            raise ServerFailedError(f"nobody listens on port {port}")
        return server

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The main process."""
        return self._pid

    @property
    def place(self) -> Path:
        """The private directory of this server."""
        if self._place is None:
            raise ServerFailedError(f"{self.name} was not started here")
        return self._place

    @property
    def log_path(self) -> Path:
        """Where everything it prints goes."""
        return self.place / "log"

    @property
    def run_directory(self) -> Path:
        """Where Semi-PD keeps the directory of a running instance."""
        return self.place / "run" / "sglang-semi-pd"

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll() if self._process else None

    def start(self) -> Server:
        """Spawn the main process; does not wait."""
        self.port = self.port or free_port()
        self._place = Path(tempfile.mkdtemp(prefix="spd-", dir="/tmp"))
        for folder in ("run", "tmp"):
            (self._place / folder).mkdir(mode=0o700)
        given = ["--model-path", str(self.model), "--port", str(self.port)]
        self._started = time.monotonic()
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [*self.command, *given, *self.flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                start_new_session=True,
            )
        self._pid = self._process.pid
        process_table.let_clients_go_first(self._pid)
        return self

    def _environment(self) -> dict[str, str]:
        own = {
            "XDG_RUNTIME_DIR": str(self.place / "run"),
            "TMPDIR": str(self.place / "tmp"),
            "PYTHONUNBUFFERED": "1",
        }
        return {**os.environ, **own, **self.environment}

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> Server:
        """Wait until it serves: ``/health``, then one generated token."""
        deadline = time.monotonic() + timeout_s
        while not self._is_healthy():
            if self.exit_code is not None:
                raise self.failure(f"exited with {self.exit_code} while starting")
            if time.monotonic() > deadline:
                raise self.failure(f"not ready after {timeout_s:.0f} s")
            time.sleep(0.2)
        self.ready_s = time.monotonic() - self._started
        self.ready_cpu_s = process_table.cpu_seconds(self.processes())
        self.generate(input_ids=[5, 6, 7], max_new_tokens=1)
        self._seen_shm |= process_table.named_shared_memory(self.processes())
        return self

    def _is_healthy(self) -> bool:
        try:
            return requests.get(f"{self.url}/health", timeout=10).status_code == 200
        except requests.RequestException:
            return False

    def processes(self) -> list[psutil.Process]:
        """Every living process it started, the main process included."""
        return process_table.in_session(self._session)

    @property
    def _session(self) -> int:
        """A server started here leads its session."""
        return self._pid if self._process else os.getsid(self._pid)

    def role(self, role: str) -> psutil.Process:
        """The one process that carries a role."""
        return self.titled(f"semi_pd_{role}")

    def titled(self, name: str) -> psutil.Process:
        """The one process whose title is SGLang's prefix and ``name``."""
        found = process_table.find_titled(self.processes(), name)
        if len(found) != 1:
            table = process_table.describe(self.processes())
            raise self.failure(f"{len(found)} processes are {name}:\n{table}")
        return found[0]

    def get(self, path: str, *, timeout_s: float = 60) -> requests.Response:
        """One GET request."""
        return self._ask("GET", path, timeout=timeout_s)

    def post(
        self, path: str, body: Any, *, timeout_s: float = 120
    ) -> requests.Response:
        """One POST request with a JSON body."""
        return self._ask("POST", path, json=body, timeout=timeout_s)

    def _ask(self, method: str, path: str, **options: Any) -> requests.Response:
        try:
            return requests.request(method, self.url + path, **options)
        except requests.RequestException as error:
            problem = f"{method} {path}: {type(error).__name__}"
        raise self.failure(problem)

    def require_alive(self) -> None:
        """Fail at once if the main process is gone."""
        if not psutil.pid_exists(self._pid) or self.exit_code is not None:
            raise self.failure(f"it is gone, exit code {self.exit_code}")

    def generate(self, **body: Any) -> dict[str, Any]:
        """One greedy ``/generate`` request that must succeed."""
        limit = body.pop("max_new_tokens", 16)
        body.setdefault("sampling_params", {"temperature": 0, "max_new_tokens": limit})
        reply = self.post("/generate", body)
        if reply.status_code != 200:
            raise self.failure(f"/generate: {reply.status_code} {reply.text[:300]}")
        answer: dict[str, Any] = reply.json()
        return answer

    def memory_usage(self) -> dict[str, Any]:
        """The state of the shared blocks, as ``/semi_pd/status`` gives it."""
        reply = self.get("/semi_pd/status")
        if reply.status_code != 200:
            raise self.failure(f"/semi_pd/status: {reply.status_code} {reply.text}")
        usage: dict[str, Any] = reply.json()["unified_memory_status"]["memory_usage"]
        return usage

    def flush_cache(self) -> None:
        """Start with an empty prefix cache."""
        reply = self.post("/flush_cache", {})
        if reply.status_code != 200:
            raise self.failure(f"/flush_cache: {reply.status_code} {reply.text}")

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to every process, as a terminal or systemd does."""
        self._seen_shm |= process_table.named_shared_memory(self.processes())
        os.killpg(self._pid, number)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the main process only."""
        self._seen_shm |= process_table.named_shared_memory(self.processes())
        os.kill(self._pid, number)

    def interrupt(self) -> None:
        """What Ctrl-C in a terminal does: SIGINT to the whole process group."""
        self.signal_group(signal.SIGINT)

    def wait_exit(self, timeout_s: float) -> int | None:
        """The exit code of the main process, None if it still runs."""
        if self._process is None:
            return None
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def stop(self) -> int | None:
        """End it as an operator would, kill what is left; returns the exit code."""
        if self._process is None:
            return None
        if self.exit_code is None:
            self.signal(signal.SIGTERM)
        code = self.wait_exit(GRACE_S)
        self.kill()
        return code

    def kill(self) -> None:
        """End every process at once."""
        if self._process is None:
            return
        process_table.signal_all(self.processes(), signal.SIGKILL)
        self._process.wait(30)
        if process_table.wait_until(lambda: not self.processes(), 10) is None:
            table = process_table.describe(self.processes())
            raise self.failure(f"SIGKILL did not end\n{table}")

    def leftovers(self) -> list[str]:
        """What remains a moment after the main process ended; nothing should."""
        process_table.wait_until(lambda: not self.processes(), LAST_MOMENT_S)
        left = [f"process {p.pid} {process_table.title(p)}" for p in self.processes()]
        left += [name for name in sorted(self._seen_shm) if os.path.exists(name)]
        left += [str(path) for path in self.run_directory.glob("run-*")]
        return left

    def clean(self) -> None:
        """Kill what is left and remove its private place."""
        if self._process is None:
            return
        self.kill()
        for name in self._seen_shm:
            with suppress(FileNotFoundError):
                os.unlink(name)
        shutil.rmtree(self.place, ignore_errors=True)

    def log(self) -> str:
        """Everything it printed so far."""
        if self._place is None:
            return ""
        return self.log_path.read_text(errors="replace")

    def failure(self, message: str) -> ServerFailedError:
        """An error that shows the end of the log."""
        tail = "\n".join(self.log().splitlines()[-60:])
        return ServerFailedError(f"{self.name}: {message}\n--- end of its log\n{tail}")
