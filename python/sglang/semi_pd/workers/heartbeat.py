# SPDX-License-Identifier: Apache-2.0
"""A worker's heartbeat: a counter in a file of the run directory, mapped by both sides.

A scheduler counts its iterations; while it is idle it goes on looping. A counter that
stands still means a worker that hangs, whatever the reason.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

_COUNT = struct.Struct("<Q")


class Heartbeat:
    """One counter, written by one process and read by another."""

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, _COUNT.size)
            self._memory = mmap.mmap(fd, _COUNT.size)
        finally:
            os.close(fd)

    def beat(self) -> None:
        """Count one more iteration."""
        _COUNT.pack_into(self._memory, 0, self.read() + 1)

    def read(self) -> int:
        """Iterations so far."""
        return int(_COUNT.unpack_from(self._memory)[0])

    def close(self) -> None:
        """Unmap."""
        self._memory.close()
