# SPDX-License-Identifier: Apache-2.0
"""Which physical memory processes share, read from ``/proc``."""

from __future__ import annotations

import mmap
import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

MEMFD_NAME = "memfd:sglang-semi-pd"
PAGE = mmap.PAGESIZE
_PRESENT = 1 << 63
_PFN = (1 << 55) - 1
_SMALL = 1e-6
"""Small integers, read as 32-bit floats, are far below; activations are above."""


@dataclass(frozen=True)
class Mapping:
    """One stretch of a memory file in a process's address space."""

    pid: int
    start: int
    end: int
    is_shared: bool
    offset: int
    inode: int

    @property
    def nbytes(self) -> int:
        """Its length."""
        return self.end - self.start


def mappings(pid: int) -> list[Mapping]:
    """The mappings of Semi-PD's memory files in one process."""
    found = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and MEMFD_NAME in fields[5]:
            start, end = (int(part, 16) for part in fields[0].split("-"))
            is_shared = fields[1].endswith("s")
            place = int(fields[2], 16), int(fields[4])
            found.append(Mapping(pid, start, end, is_shared, *place))
    return found


def frames(mapping: Mapping, pages: list[int]) -> list[int]:
    """Physical page numbers behind pages of a file; 0 where not present or not told."""
    found = []
    with open(f"/proc/{mapping.pid}/pagemap", "rb") as file:
        for page in pages:
            address = mapping.start + page * PAGE - mapping.offset
            file.seek(address // PAGE * 8)
            (entry,) = struct.unpack("<Q", file.read(8))
            found.append(entry & _PFN if entry & _PRESENT else 0)
    return found


def resident_and_proportional(pid: int) -> tuple[int, int]:
    """Bytes of Semi-PD's memory files: as this process sees them, and its share."""
    rss = pss = 0
    is_ours = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        head = line.split()[0]
        if not head.endswith(":"):
            is_ours = MEMFD_NAME in line
        elif is_ours and head == "Rss:":
            rss += int(line.split()[1]) << 10
        elif is_ours and head == "Pss:":
            pss += int(line.split()[1]) << 10
    return rss, pss


class MemoryFile:
    """A memory file of another process, opened by its inode."""

    def __init__(self, pid: int, inode: int) -> None:
        self.inode = inode
        descriptor = os.open(_descriptor_path(pid, inode), os.O_RDWR)
        try:
            self._map = mmap.mmap(descriptor, 0)
        finally:
            os.close(descriptor)
        whole_pages = len(self._map) // PAGE
        self._bytes = np.frombuffer(self._map, np.uint8, whole_pages * PAGE)
        self._before = self._bytes.copy()

    def changed_pages(self) -> list[int]:
        """The pages whose content is not what it was when the file was opened."""
        is_changed = (self._bytes != self._before).reshape(-1, PAGE).any(axis=1)
        return [int(page) for page in np.flatnonzero(is_changed)]

    def written_activations(self) -> list[int]:
        """The changed pages that hold activations, and not integers."""
        return [page for page in self.changed_pages() if self._holds_floats(page)]

    def negate(self, page: int) -> None:
        """Change the sign of every float of a page, for everyone who maps it."""
        self._floats(page)[:] *= -1

    def _floats(self, page: int) -> npt.NDArray[np.float32]:
        return self._bytes[page * PAGE : (page + 1) * PAGE].view(np.float32)

    def _holds_floats(self, page: int) -> bool:
        values = np.abs(self._floats(page))
        values = values[values > 0]
        return bool(values.size) and bool(np.median(values) > _SMALL)


def memory_files(pid: int) -> list[MemoryFile]:
    """Every memory file of Semi-PD that a process has mapped."""
    inodes = {one.inode for one in mappings(pid)}
    return [MemoryFile(pid, inode) for inode in sorted(inodes)]


def _descriptor_path(pid: int, inode: int) -> str:
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with suppress(OSError):
            if os.stat(entry.path).st_ino == inode and "memfd" in os.readlink(
                entry.path
            ):
                return entry.path
    raise FileNotFoundError(f"process {pid} holds no descriptor of inode {inode}")
