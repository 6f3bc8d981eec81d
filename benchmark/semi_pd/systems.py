# SPDX-License-Identifier: Apache-2.0
"""The systems that are compared, and a server process of one of them."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

PDMUX_PLUGIN = Path(__file__).parent / "pdmux_plugin"
PDMUX_GROUPS = 8
GREEN_SPLITS = ((100, 100), (80, 100), (60, 100), (70, 30), (50, 50))
MPS_SPLITS = ((100, 100), (90, 100), (50, 100), (50, 50))
"""On an H200 an MPS share of 80 % computes wrong; 90 % is the nearest that does not."""
STOP_S = 25.0
HEALTH_TIMEOUT_S = 30.0
ENVIRONMENT = dict(os.environ)
"""Of every server: this process hides the GPU from itself, to take no memory there."""


@dataclass(frozen=True, slots=True)
class System:
    """A way to start SGLang.

    Attributes:
        needs_file: content for the file whose path takes the place of FILE in flags.
        path: folders for PYTHONPATH, in front.
    """

    name: str
    flags: tuple[str, ...] = ()
    needs_file: str = ""
    path: tuple[Path, ...] = ()


def _semi_pd(backend: str, prefill: int, decode: int) -> System:
    flags = ("--enable-semi-pd", "--enable-sm-overlap")
    backends = ("--sm-partition-backend", backend)
    split = ("--initial-prefill-sm", str(prefill), "--initial-decode-sm", str(decode))
    name = f"semi-pd-{backend}-{prefill}-{decode}"
    return System(name, (*flags, *backends, *split))


def _tuned(name: str, *flags: str) -> System:
    return System(f"tuned-{name}", flags)


_PDMUX = System(
    "pdmux",
    (
        "--enable-pdmux",
        *("--pdmux-config-path", "FILE"),
        *("--sm-group-num", str(PDMUX_GROUPS)),
        *("--chunked-prefill-size", "-1"),
        "--disable-overlap-schedule",
    ),
    needs_file=f"sm_group_num: {PDMUX_GROUPS}\n",
    path=(PDMUX_PLUGIN,),
)

SYSTEMS: Mapping[str, System] = {
    system.name: system
    for system in (
        System("default"),
        _tuned("chunk-2048", "--chunked-prefill-size", "2048"),
        _tuned("mixed-2048", "--enable-mixed-chunk", "--chunked-prefill-size", "2048"),
        _tuned("mixed-1024", "--enable-mixed-chunk", "--chunked-prefill-size", "1024"),
        _tuned("mixed-512", "--enable-mixed-chunk", "--chunked-prefill-size", "512"),
        _PDMUX,
        *(_semi_pd("green", *split) for split in GREEN_SPLITS),
        *(_semi_pd("mps", *split) for split in MPS_SPLITS),
        System("semi-pd-auto", ("--enable-semi-pd",)),
        System("semi-pd-none", ("--enable-semi-pd", "--sm-partition-backend", "none")),
    )
}
"""``tuned-*`` is one system: the best of them is taken for each load."""


def named(name: str) -> System:
    """A system by its name; Semi-PD at any split as ``semi-pd-green-75-40``.

    Raises:
        ArgumentTypeError: there is none of that name.
    """
    if name in SYSTEMS:
        return SYSTEMS[name]
    split = re.fullmatch(r"semi-pd-(green|mps)-(\d+)-(\d+)", name)
    if split is None:
        choices = ", ".join(SYSTEMS)
        raise argparse.ArgumentTypeError(f"{name} is none of {choices}")
    return _semi_pd(split[1], int(split[2]), int(split[3]))


class NotReadyError(RuntimeError):
    """The server ended or was not ready in time."""


@dataclass
class RunningServer:
    """A server process of a system; leaves no process behind.

    Args:
        common: flags of every system that is compared.
        logs: folder for what it prints.
    """

    system: System
    common: Sequence[str]
    port: int
    logs: Path
    ready_s: float = 0.0
    _process: subprocess.Popen[bytes] | None = None
    _place: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="bench")))

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def start(self, timeout_s: float) -> None:
        """Start it and wait until it serves.

        Raises:
            NotReadyError: see its log; or another server has the port, and would be
                measured in its place.
        """
        if _answers(self.port):
            raise NotReadyError(f"{self.system.name}: port {self.port} is taken")
        command = [sys.executable, "-m", "sglang.launch_server"]
        command += [*self.common, "--port", str(self.port), *self._flags()]
        self.logs.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        with (self.logs / f"{self.system.name}.log").open("wb") as log:
            log.write(" ".join([*command, "\n"]).encode())
            log.flush()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                start_new_session=True,
            )
        try:
            self._await_ready(self._process, started + timeout_s)
        except BaseException:  # SIGTERM too: nobody else would end it
            self.stop()
            raise
        self.ready_s = time.monotonic() - started

    def _await_ready(self, process: subprocess.Popen[bytes], deadline: float) -> None:
        while not self._is_healthy():
            if process.poll() is not None:
                raise NotReadyError(f"{self.system.name} ended while it started")
            if time.monotonic() > deadline:
                raise NotReadyError(f"{self.system.name} was not ready in time")
            time.sleep(0.5)

    def is_alive(self) -> bool:
        """Whether its main process runs."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End it as an operator would, then every process of its session."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_S)
        for pid in _in_session(self._process.pid):
            _kill(pid)
        self._process.wait()
        self._process = None
        shutil.rmtree(self._place, ignore_errors=True)

    def _flags(self) -> list[str]:
        config = self._place / "config.yaml"
        if self.system.needs_file:
            config.write_text(self.system.needs_file, encoding="utf-8")
        return [str(config) if flag == "FILE" else flag for flag in self.system.flags]

    def _environment(self) -> dict[str, str]:
        path = [*map(str, self.system.path), ENVIRONMENT.get("PYTHONPATH", "")]
        return {
            **ENVIRONMENT,
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "PYTHONUNBUFFERED": "1",
            "XDG_RUNTIME_DIR": str(self._place),
        }

    def _is_healthy(self) -> bool:
        """Whether it answers a request: the first may wait until kernels are built."""
        try:
            with urllib.request.urlopen(
                f"{self.url}/health_generate", timeout=HEALTH_TIMEOUT_S
            ) as answer:
                return bool(answer.status == 200)
        # A port of the kernel's own range may connect to itself, and say what it heard.
        except (OSError, HTTPException):
            return False


def end_tidily() -> None:
    """Let SIGTERM end this program as Ctrl-C does: its servers end first."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def own_and_servers(given: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments of this program, and what follows ``--``: flags of every server."""
    cut = given.index("--") if "--" in given else len(given)
    return list(given[:cut]), list(given[cut + 1 :])


def look_at_each(
    parser: argparse.ArgumentParser,
    look: Callable[[argparse.Namespace, RunningServer], None],
) -> int:
    """Start each of ``--systems`` in turn and look at it; 1 if one of them failed.

    Args:
        parser: of the program's own arguments, with ``--port``; those that say what to
            start are added.
    """
    own, flags = own_and_servers(sys.argv[1:])
    parser.add_argument("--out", type=Path, required=True, help="what is kept")
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--systems", nargs="+", type=named, required=True)
    parser.add_argument("--start-timeout", type=float, default=200.0)
    options = parser.parse_args(own)
    common = ["--model-path", options.model_path, *flags]
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    end_tidily()
    failed = 0
    for system in options.systems:
        server = RunningServer(system, common, options.port, options.out)
        try:
            server.start(options.start_timeout)
            try:
                look(options, server)
            finally:
                server.stop()
        except (NotReadyError, OSError, RuntimeError) as error:
            failed += 1
            print(f"{system.name}: {error}", flush=True)
    return 1 if failed else 0


def gpu_memory_mib() -> list[int]:
    """Memory in use of each GPU; empty without ``nvidia-smi``."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return [int(line) for line in said.stdout.split()]


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    return False


def _in_session(leader: int) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if os.getsid(int(entry)) == leader:
                    found.append(int(entry))
            except ProcessLookupError:
                continue
    return found


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
