# SPDX-License-Identifier: Apache-2.0
"""Shared memory without a name: nothing to leak, nothing to guess.

A memfd lives as long as some process has it open or mapped. Killing every process frees
it; there is no entry in ``/dev/shm`` and no cleaning up after a crash.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt
from sglang.semi_pd.memory.available_memory import available_bytes

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class SharedMemory:
    """One memfd mapped into this process.

    Made by ``create`` in one process; others get the file descriptor (inherited, or
    sent with ``socket.send_fds``) and ``attach``. The size is sealed, so no peer can
    shrink the file under a mapping, which would end its readers with SIGBUS.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._close_fd = weakref.finalize(self, os.close, fd)
        self.nbytes = os.fstat(fd).st_size
        self.buffer = mmap.mmap(fd, self.nbytes, mmap.MAP_SHARED)

    @classmethod
    def create(cls, name: str, nbytes: int, *, reserve: bool = True) -> SharedMemory:
        """Make ``nbytes`` of zeroed shared memory; ``name`` shows in ``/proc/*/maps``.

        Args:
            reserve: take the memory now. Otherwise pages come on first touch, which is
                right for huge, sparsely used arrays, but a full machine then shows as
                a signal at that touch rather than as an error here.

        Raises:
            ValueError: ``nbytes`` is not positive.
            OSError: the system, or this container, has not that much memory (ENOMEM,
                ENOSPC, EFBIG).
        """
        if nbytes < 1:
            raise ValueError(f"nbytes: {nbytes} is not positive")
        if reserve and nbytes > (available := available_bytes()):
            raise OSError(
                errno.ENOMEM, f"{name} needs {nbytes} bytes, {available} are available"
            )
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, nbytes)
            if reserve:
                os.posix_fallocate(fd, 0, nbytes)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        except OSError:
            os.close(fd)
            raise
        return cls(fd)

    @classmethod
    def attach(cls, fd: int) -> SharedMemory:
        """Map the memory behind ``fd``; the caller keeps, and closes, its own ``fd``.

        Raises:
            ValueError: ``fd`` is not shared memory of a sealed size.
            OSError: ``fd`` is not open.
        """
        own = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
        try:
            seals = fcntl.fcntl(own, fcntl.F_GET_SEALS)
        except OSError:
            seals = 0
        if seals & _SEALS != _SEALS:
            os.close(own)
            raise ValueError(f"fd: {fd} is not shared memory of a sealed size")
        return cls(own)

    def ndarray(
        self, dtype: npt.DTypeLike, shape: int | tuple[int, ...], offset: int = 0
    ) -> npt.NDArray[Any]:
        """A numpy view of the memory, ``offset`` bytes from its start.

        Raises:
            ValueError: the view would not lie inside the memory.
        """
        dims = (shape,) if isinstance(shape, int) else shape
        count = int(np.prod(dims, dtype=np.int64))
        end = offset + count * np.dtype(dtype).itemsize
        if offset < 0 or end > self.nbytes:
            raise ValueError(f"offset: [{offset}, {end}) is not within {self.nbytes}")
        # frombuffer, because np.ndarray(buffer=...) does not keep the mapping alive.
        flat: npt.NDArray[Any] = np.frombuffer(self.buffer, dtype, count, offset)
        return flat.reshape(dims)

    def close(self) -> None:
        """Give up the descriptor and this mapping.

        While views of the memory are alive, the mapping stays until the last one goes.
        """
        self._close_fd()
        try:
            self.buffer.close()
        except BufferError:
            # Views are alive; the garbage collector unmaps after the last of them.
            return
