# SPDX-License-Identifier: Apache-2.0
"""How much host memory can still be taken: of the machine, and within a container.

Asked before memory is reserved, because memory files have no limit of their own:
reserving too much would wake the OOM killer instead of failing.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class _Files:
    """Where a version of cgroups says what; ``prefix`` counts children too."""

    mount: str
    limit: str
    usage: str
    prefix: str


_V1 = _Files(
    "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
)
_V2 = _Files("sys/fs/cgroup", "memory.max", "memory.current", "")


def available_bytes(root: Path = _ROOT) -> int:
    """What the kernel can hand out to this process, as far as its cgroups allow.

    Args:
        root: where ``/proc`` and ``/sys`` are.

    Raises:
        OSError: the kernel does not say.
    """
    return min([_of_machine(root), *_of_cgroups(root)])


def _of_machine(root: Path) -> int:
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError(errno.ENOSYS, "no MemAvailable in /proc/meminfo")


def _of_cgroups(root: Path) -> Iterator[int]:
    """What is left of each limit: those of all cgroups above hold as well."""
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in memberships:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        files = _V1 if controllers else _V2
        # A container may see its own cgroup as the mount, and a path that is none.
        parts = path.strip("/").split("/")
        for depth in range(len(parts) + 1):
            left = _left(root.joinpath(files.mount, *parts[:depth]), files)
            if left is not None:
                yield left


def _left(cgroup: Path, files: _Files) -> int | None:
    """Bytes below the limit, the file cache not counted: the kernel gives it up."""
    try:
        limit = (cgroup / files.limit).read_text().strip()
        used = int((cgroup / files.usage).read_text())
        lines = (cgroup / "memory.stat").read_text().splitlines()
    except OSError:  # no such cgroup, or the root, which has no limit
        return None
    if limit == "max":
        return None
    stat = dict(line.split() for line in lines)
    names = (f"{files.prefix}active_file", f"{files.prefix}inactive_file")
    cache = sum(int(stat.get(name, 0)) for name in names)
    return max(0, int(limit) - used + cache)
