# SPDX-License-Identifier: Apache-2.0
"""How much memory may be reserved: files as the kernel writes them, and this host."""

from __future__ import annotations

from pathlib import Path

import pytest
from sglang.semi_pd.memory.available_memory import available_bytes
from sglang.semi_pd.memory.shared_memory import SharedMemory

MIB = 1 << 20
FREE = 8000 * MIB
UNLIMITED_V1 = "9223372036854771712"


def host(root: Path, membership: str) -> Path:
    """One with 8000 MiB free, without limits."""
    write(root / "proc/meminfo", f"MemTotal: 9 kB\nMemAvailable: {FREE // 1024} kB\n")
    write(root / "proc/self/cgroup", membership)
    return root


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def limit_v2(cgroup: Path, limit: object, used: int, cache: int = 0) -> None:
    write(cgroup / "memory.max", f"{limit}\n")
    write(cgroup / "memory.current", f"{used}\n")
    stat = f"anon 7\nfile 9999\ninactive_file {cache}\nactive_file 0\n"
    write(cgroup / "memory.stat", stat)


def limit_v1(cgroup: Path, limit: object, used: int, cache: int = 0) -> None:
    write(cgroup / "memory.limit_in_bytes", f"{limit}\n")
    write(cgroup / "memory.usage_in_bytes", f"{used}\n")
    stat = f"inactive_file 0\ntotal_inactive_file 0\ntotal_active_file {cache}\n"
    write(cgroup / "memory.stat", stat)


def test_without_cgroups_it_is_what_the_machine_has(tmp_path: Path) -> None:
    assert available_bytes(host(tmp_path, "0::/\n")) == FREE
    (tmp_path / "proc/self/cgroup").unlink()
    assert available_bytes(tmp_path) == FREE


@pytest.mark.parametrize("path", ["/", "/docker/4f2a", "/../elsewhere"])
def test_a_container_has_what_is_left_of_its_limit(tmp_path: Path, path: str) -> None:
    """Its own cgroup is mounted as the root, whatever path is told; v2 and v1."""
    v2 = host(tmp_path / "v2", f"0::{path}\n")
    limit_v2(v2 / "sys/fs/cgroup", 4096 * MIB, 1000 * MIB)
    assert available_bytes(v2) == 3096 * MIB
    v1 = host(tmp_path / "v1", f"5:devices:/\n4:memory:{path}\n0::/\n")
    limit_v1(v1 / "sys/fs/cgroup/memory", 4096 * MIB, 1000 * MIB)
    assert available_bytes(v1) == 3096 * MIB


def test_weights_that_were_read_through_the_file_cache_leave_room(
    tmp_path: Path,
) -> None:
    root = host(tmp_path, "0::/\n")
    limit_v2(root / "sys/fs/cgroup", 4096 * MIB, 4090 * MIB, cache=3000 * MIB)
    assert available_bytes(root) == 3006 * MIB


def test_the_least_limit_of_all_cgroups_above_counts(tmp_path: Path) -> None:
    root = host(tmp_path, "4:memory:/slice/unit\n")
    mount = root / "sys/fs/cgroup/memory"
    limit_v1(mount, UNLIMITED_V1, 6000 * MIB)
    limit_v1(mount / "slice", 2048 * MIB, 1948 * MIB, cache=10 * MIB)
    limit_v1(mount / "slice/unit", 4096 * MIB, 1000 * MIB)
    assert available_bytes(root) == 110 * MIB
    nested = host(tmp_path / "v2", "0::/a/b\n")
    limit_v2(nested / "sys/fs/cgroup/a", 100, 200)
    limit_v2(nested / "sys/fs/cgroup/a/b", "max", 150)
    assert available_bytes(nested) == 0, "over its limit already"


def test_more_than_there_is_on_this_host_is_an_error() -> None:
    there_is = available_bytes()
    assert there_is > 0
    with pytest.raises(OSError, match="are available"):
        SharedMemory.create("too much", 4 * there_is)
