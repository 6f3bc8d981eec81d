# SPDX-License-Identifier: Apache-2.0
"""What earlier runs left: directories, processes, MPS daemons."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sglang.semi_pd.doctor.finding import Finding, by_rule, failed, note, ok
from sglang.semi_pd.launch import mps_daemons
from sglang.semi_pd.server import run_directory

_TITLE = "sglang::semi_pd_"
_FORK_SERVER = "multiprocessing.forkserver"
_REAPERS = ("systemd", "init", "tini", "dumb-init", "docker-init")


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    parent: int
    name: str
    command: str


def examine() -> Iterator[Finding]:
    """Everything that outlived its server; living servers are named."""
    base = by_rule("run directory", run_directory.base_directory)
    yield base
    if not base.mend:
        yield _directories()
    yield _processes()
    yield _mps_daemons()


def _directories() -> Finding:
    paths = list(run_directory.base_directory().glob("run-*"))
    alive = _serving()
    stale = len(paths) - len(alive)
    pids = ", ".join(map(str, alive))
    serving = f"serving now: pid {pids}" if alive else "no server runs"
    if stale:
        return note(
            "instances",
            f"{serving}; {stale} directories of dead servers",
            "nothing to do: the next start removes them",
        )
    return ok("instances", f"{serving}; nothing of a dead one is left")


def _serving() -> list[int]:
    """The main processes of living instances."""
    return [
        int(path.name.split("-")[1])
        for path in run_directory.base_directory().glob("run-*")
        if run_directory.owner_is_alive(path)
    ]


def _processes() -> Finding:
    """A worker without its server; the kernel should have ended it."""
    processes = {process.pid: process for process in _all_processes()}
    orphans = [
        process
        for process in processes.values()
        if process.command.startswith(_TITLE) and _is_orphan(process, processes)
    ]
    if orphans:
        pids = " ".join(str(process.pid) for process in orphans)
        return failed(
            "processes",
            f"workers of a dead server are alive: {pids}",
            f"kill -9 {pids}",
        )
    return ok("processes", "no worker has outlived its server")


def _is_orphan(process: _Process, processes: dict[int, _Process]) -> bool:
    parent = processes.get(process.parent)
    while parent is not None and (
        parent.command.startswith("sglang::") or _FORK_SERVER in parent.command
    ):
        parent = processes.get(parent.parent)
    if parent is None or parent.name in _REAPERS:
        return True
    return parent.pid == 1 and parent.pid not in _serving()


def _mps_daemons() -> Finding:
    lost = [
        daemon
        for daemon in mps_daemons.running()
        if run_directory.is_one(Path(daemon.pipes).parent)
        and not run_directory.owner_is_alive(Path(daemon.pipes).parent)
    ]
    if lost:
        one = lost[0]
        said = f"the daemon of a dead server is alive: pid {one.pid}"
        if Path(one.pipes).parents[1] == run_directory.base_directory():
            return note("MPS daemons", said, "nothing to do: the next start ends it")
        return failed(
            "MPS daemons",
            said,
            f"echo quit | {mps_daemons.PIPE_DIRECTORY}={one.pipes} "
            f"{mps_daemons.CONTROL}, or kill {one.pid}",
        )
    return ok("MPS daemons", "none has outlived its server")


def _all_processes() -> Iterator[_Process]:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            continue
        yield _Process(
            pid=int(pid),
            parent=int(stat.rpartition(")")[2].split()[1]),
            name=stat.partition("(")[2].rpartition(")")[0],
            command=command.replace(b"\0", b" ").decode(errors="replace"),
        )
