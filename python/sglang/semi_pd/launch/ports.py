# SPDX-License-Identifier: Apache-2.0
"""Whether a TCP port can be listened on, and who has it if not."""

from __future__ import annotations

import os
import random
import socket

from sglang.semi_pd.errors import ConfigError

_HIGHEST = 65535
_LOWEST = 12000
_ATTEMPTS = 100
_KERNELS_OWN = "/proc/sys/net/ipv4/ip_local_port_range"
_LISTEN = "0A"


def require_free(host: str, port: int) -> None:
    """Refuse a port that cannot be bound, naming its holder and a free one.

    Raises:
        ConfigError: if binding fails, or the number is no port.
    """
    if not 1 <= port <= _HIGHEST:
        raise ConfigError(
            f"--port {port} is refused",
            why=f"a port is a number from 1 to {_HIGHEST}",
            mend="use for example --port 30000",
        )
    cause = _bind_error(host, port)
    if cause is None:
        return
    holder = _holder(port)
    raise ConfigError(
        f"--port {port} on {host} is refused",
        why=f"it is in use by {holder}" if holder else cause,
        mend=f"stop that process or use --port {_next_free(host, port)}",
    )


def undisturbed() -> int:
    """A free port for a process that will listen on it much later.

    The kernel gives such a port to nobody by itself, so no connection of another
    program takes it meanwhile.
    """
    try:
        with open(_KERNELS_OWN, encoding="ascii") as file:
            first = int(file.read().split()[0])
    except OSError:
        first = _LOWEST
    for _ in range(_ATTEMPTS):
        port = random.randrange(_LOWEST, max(first, _LOWEST + 1000))
        if _bind_error("127.0.0.1", port) is None:
            return port
    raise ConfigError(
        f"no port from {_LOWEST} to {first} is free",
        why=f"{_ATTEMPTS} of them were tried",
        mend="end what listens on them",
    )


def _bind_error(host: str, port: int) -> str | None:
    """Why binding fails, None if it works."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return None


def _next_free(host: str, port: int) -> int:
    """The nearest higher port that is free, else the one after ``port``."""
    candidates = range(port + 1, min(port + 100, _HIGHEST + 1))
    free = (number for number in candidates if _bind_error(host, number) is None)
    return next(free, min(port + 1, _HIGHEST))


def _holder(port: int) -> str:
    """The process listening on ``port``, empty if it cannot be seen."""
    sockets = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if sockets & _open_files(pid):
            return f"pid {pid} ({_process_name(pid)})"
    return ""


def _listening_inodes(port: int) -> list[str]:
    inodes = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, encoding="ascii") as file:
                rows = [line.split() for line in file.readlines()[1:]]
        except OSError:
            continue
        inodes += [
            row[9]
            for row in rows
            if row[3] == _LISTEN and int(row[1].rpartition(":")[2], 16) == port
        ]
    return inodes


def _open_files(pid: str) -> set[str]:
    folder = f"/proc/{pid}/fd"
    files = set()
    try:
        for number in os.listdir(folder):
            files.add(os.readlink(f"{folder}/{number}"))
    except OSError:
        return files
    return files


def _process_name(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return "unknown"
