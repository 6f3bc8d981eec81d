# SPDX-License-Identifier: Apache-2.0
"""What the operating system knows about a server's processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import psutil

ROLES = ("resident", "prefill", "decode")
_GONE = (psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError)


def in_session(session: int) -> list[psutil.Process]:
    """The living processes of a session; zombies are dead already."""
    found = []
    for process in psutil.process_iter():
        with suppress(*_GONE, PermissionError):
            is_member = os.getsid(process.pid) == session
            if is_member and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def still_alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that run on; a reused pid is another process."""
    alive = []
    for process in processes:
        with suppress(*_GONE):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
    return alive


def title(process: psutil.Process) -> str:
    """What ``ps`` shows, on one line; empty for a process that is gone."""
    with suppress(*_GONE):
        return " ".join(process.cmdline()).strip()
    return ""


def describe(processes: Iterable[psutil.Process]) -> str:
    """One line for each process."""
    rows = ["    pid   ppid  rss MiB  title"]
    for process in processes:
        with suppress(*_GONE):
            rss = process.memory_info().rss >> 20
            name = title(process)[:100] or process.name()
            rows.append(f"{process.pid:7d}{process.ppid():7d}{rss:9d}  {name}")
    return "\n".join(rows)


def find_role(processes: Iterable[psutil.Process], role: str) -> list[psutil.Process]:
    """The processes that carry a role in their title."""
    return find_titled(processes, f"semi_pd_{role}")


def find_titled(processes: Iterable[psutil.Process], name: str) -> list[psutil.Process]:
    """The processes whose title is SGLang's prefix and begins with ``name``."""
    wanted = f"sglang::{name}"
    return [process for process in processes if title(process).startswith(wanted)]


def signal_all(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to those that still run."""
    for process in processes:
        with suppress(*_GONE):
            process.send_signal(number)


def wait_until(condition: Callable[[], bool], timeout_s: float) -> float | None:
    """Seconds until the condition held, None if it did not in time."""
    start = time.monotonic()
    while time.monotonic() - start < timeout_s:
        if condition():
            return time.monotonic() - start
        time.sleep(0.02)
    return None


def named_shared_memory(processes: Iterable[psutil.Process]) -> set[str]:
    """Files of ``/dev/shm`` that these processes have open or mapped."""
    names: set[str] = set()
    for process in processes:
        names |= _mapped_names(process.pid) | _open_names(process.pid)
    return {name for name in names if name.startswith("/dev/shm/")}


def _mapped_names(pid: int) -> set[str]:
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        return {line.split(maxsplit=5)[5] for line in lines if "/dev/shm/" in line}
    return set()


def _open_names(pid: int) -> set[str]:
    names: set[str] = set()
    with suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                names.add(os.readlink(entry.path))
    return names


def tcp_listeners(processes: Iterable[psutil.Process]) -> list[tuple[str, str, int]]:
    """(title, address, port) of every TCP socket these processes listen on."""
    found = []
    for process in processes:
        with suppress(*_GONE, psutil.AccessDenied):
            for connection in process.net_connections(kind="tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    address = connection.laddr
                    found.append((title(process)[:60], address.ip, address.port))
    return sorted(found)


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """Processor time these processes have used, user and system."""
    total = 0.0
    for process in processes:
        with suppress(*_GONE):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def let_clients_go_first(pid: int) -> None:
    """Lower the weight of a server's session, where Linux schedules by session.

    Its threads are pinned; with equal weights a client in another session may have to
    wait for many seconds, and then comes too late with what it was to do.
    """
    with suppress(OSError):  # a kernel without autogroups
        Path(f"/proc/{pid}/autogroup").write_text("10")
