# SPDX-License-Identifier: Apache-2.0
"""The host or container around a server: /dev/shm, the first process, the port."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from sglang.semi_pd.doctor.finding import Finding, by_rule, note, ok, skipped
from sglang.semi_pd.launch import ports

SHM = "/dev/shm"
_GIB = 2**30
_MIB = 2**20
SHM_NEEDED_BYTES = 1 * _GIB
"""For NCCL between several GPUs; Semi-PD's own memory is not in /dev/shm."""
_CONTAINER_FILES = ("/.dockerenv", "/run/.containerenv")


def examine(host: str, port: int, gpu_count: int) -> Iterator[Finding]:
    """Everything about the host."""
    yield _container()
    yield _shm(gpu_count)
    yield by_rule(
        "port", lambda: ports.require_free(host, port), f"{port} on {host} is free"
    )


def _container() -> Finding:
    name = next((path for path in _CONTAINER_FILES if os.path.exists(path)), "")
    if not name and "container" not in _environment_of(1):
        return skipped("container", "not in one")
    dead = _zombies_of(1)
    if dead:
        return note(
            "container",
            f"its first process does not reap the dead: {len(dead)} zombies",
            "start it with --init; a zombie keeps its GPU memory",
        )
    return ok("container", "its first process reaps the dead")


def _shm(gpu_count: int) -> Finding:
    try:
        usage = shutil.disk_usage(SHM)
    except OSError:
        return note("/dev/shm", "there is none", "mount a tmpfs there")
    said = f"{usage.free / _MIB:,.0f} of {usage.total / _MIB:,.0f} MiB free"
    if gpu_count < 2:
        return ok("/dev/shm", f"{said}; one process per GPU needs none of it")
    if usage.free < SHM_NEEDED_BYTES:
        return note(
            "/dev/shm",
            f"{said}: little for NCCL between {gpu_count} GPUs",
            "start the container with --shm-size 8g or --ipc=host",
        )
    return ok("/dev/shm", said)


def _environment_of(pid: int) -> set[str]:
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return set()
    return {entry.partition("=")[0] for entry in text.split("\0")}


def _zombies_of(parent: int) -> list[int]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] == "Z" and int(fields[1]) == parent:
            found.append(int(pid))
    return found
