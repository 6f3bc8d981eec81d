# SPDX-License-Identifier: Apache-2.0
"""What a worker says about its share of the SMs: a file in the run directory.

Mapped by the worker, which writes, and by the main process, which reads; no message is
sent and nobody waits. It tells which split is in force and what was realised of it.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import astuple, dataclass
from pathlib import Path

_VERSION = struct.Struct("<Q")
_BODY = struct.Struct("<QQddQd")
_BYTES = _VERSION.size + _BODY.size
TRIES = 1000
"""Some hundred times what a write takes."""


@dataclass(frozen=True, slots=True)
class ShareReport:
    """One worker's SMs.

    Attributes:
        serial: number of the last split it took; 0 is the one it started with.
        sms: SMs of the present split.
        sm_seconds: SMs seen by the probe, integrated over time.
        seconds: time over which they were.
        moves: splits taken since it started.
        slowest_move_us: CPU time of the slowest of them.
    """

    serial: int = 0
    sms: int = 0
    sm_seconds: float = 0.0
    seconds: float = 0.0
    moves: int = 0
    slowest_move_us: float = 0.0


class ShareRecord:
    """The file; either side opens it, the first one makes it.

    One process writes. A reader that meets a write half done reads again; if its
    writer was killed or stopped in it, the reader goes on with what it read last.
    """

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, _BYTES)
            self._memory = mmap.mmap(fd, _BYTES)
        finally:
            os.close(fd)
        self._last = ShareReport()

    def write(self, report: ShareReport) -> None:
        """Replace what the record says."""
        version = self._version()
        _VERSION.pack_into(self._memory, 0, version + 1)
        _BODY.pack_into(self._memory, _VERSION.size, *astuple(report))
        _VERSION.pack_into(self._memory, 0, version + 2)

    def read(self) -> ShareReport:
        """What the record says; all zeros if nothing was written."""
        for _ in range(TRIES):
            before = self._version()
            report = ShareReport(*_BODY.unpack_from(self._memory, _VERSION.size))
            if before % 2 == 0 and self._version() == before:
                self._last = report
                break
        return self._last

    def close(self) -> None:
        """Unmap."""
        self._memory.close()

    def _version(self) -> int:
        return int(_VERSION.unpack_from(self._memory)[0])
