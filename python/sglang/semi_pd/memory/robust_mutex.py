# SPDX-License-Identifier: Apache-2.0
"""A lock in shared memory that its holder's death releases.

A POSIX process-shared *robust* mutex, reached through ctypes so that nothing has to be
compiled. When its holder is killed, the kernel hands the mutex to the next locker with
``EOWNERDEAD``: that locker is told, repairs what the mutex protects, and goes on.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from sglang.semi_pd.errors import SemiPDError

# One mutex takes REGION_BYTES of shared memory, aligned to ALIGNMENT:
#
#   0        pthread_mutex_t (40 bytes on x86-64, 48 on aarch64)
#   64       waits | wait_total_ns | wait_max_ns | recoveries   (int64 each)
#   96..127  unused
REGION_BYTES = 128
ALIGNMENT = 64
DEFAULT_TIMEOUT_S = 5.0

TRIES = 200
"""Before sleeping. Some tens of microseconds, as long as most holders take: to sleep
and be woken costs more. With 4 processes on 2 cores a quarter to a half more
operations a second."""

_STATS_OFFSET = 64
_WAITS, _WAIT_TOTAL_NS, _WAIT_MAX_NS, _RECOVERIES, _NUM_STATS = range(5)

_PROCESS_SHARED = 1
_ROBUST = 1
_ERROR_CHECK = 2
_FUTEX_TID_MASK = 0x3FFFFFFF
_NS_PER_S = 1_000_000_000


class LockTimeoutError(SemiPDError, TimeoutError):
    """The holder kept the lock too long: it is stopped or stuck, not dead."""


class LockMisuseError(SemiPDError):
    """Locked twice by one thread, or unlocked by a thread that does not hold it."""


class LockNotRecoverableError(SemiPDError):
    """The mutex is unusable; what it protects must be built anew."""


@dataclass(frozen=True, slots=True)
class LockStats:
    """What waiting for one mutex has cost all processes together.

    Only acquisitions that had to sleep count as waits.
    """

    waits: int
    wait_total_ns: int
    wait_max_ns: int
    recoveries: int


class _Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


# CDLL drops the GIL around a call, PyDLL keeps it: dropping costs more than an
# uncontended lock does, so only the call that can block goes through CDLL.
_blocking = ctypes.CDLL(None)
_quick = ctypes.PyDLL(None)
_quick.pthread_mutex_trylock.argtypes = [ctypes.c_void_p]
_quick.pthread_mutex_unlock.argtypes = [ctypes.c_void_p]
_quick.pthread_mutex_consistent.argtypes = [ctypes.c_void_p]
_quick.pthread_mutex_init.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
_blocking.pthread_mutex_timedlock.argtypes = [ctypes.c_void_p, ctypes.c_void_p]


class RobustMutex:
    """One mutex inside a shared buffer; each process that maps it makes its own object.

    Ownership is per thread: the thread that locked must unlock. Close it before its
    buffer, and never while holding it.
    """

    def __init__(self, buffer: mmap.mmap, offset: int) -> None:
        if offset < 0 or offset % ALIGNMENT or offset + REGION_BYTES > len(buffer):
            raise ValueError(
                f"offset: {offset} must be a multiple of {ALIGNMENT} with "
                f"{REGION_BYTES} bytes after it in a buffer of {len(buffer)}"
            )
        self._region = (ctypes.c_char * REGION_BYTES).from_buffer(buffer, offset)
        self._address = ctypes.addressof(self._region)
        self._word = ctypes.c_uint32.from_buffer(self._region, 0)
        first = offset + _STATS_OFFSET
        self._stats = memoryview(buffer)[first : first + 8 * _NUM_STATS].cast("q")
        self._trylock: Callable[[int], int] = _quick.pthread_mutex_trylock
        self._unlock: Callable[[int], int] = _quick.pthread_mutex_unlock

    @classmethod
    def create(cls, buffer: mmap.mmap, offset: int) -> RobustMutex:
        """Make a new, free mutex at ``offset`` (bytes) and return it.

        Raises:
            ValueError: the offset is misaligned or too near the end.
            OSError: the platform refused a robust process-shared mutex.
        """
        mutex = cls(buffer, offset)
        attributes = ctypes.create_string_buffer(64)
        for function, *arguments in (
            (_quick.pthread_mutexattr_init,),
            (_quick.pthread_mutexattr_setpshared, _PROCESS_SHARED),
            (_quick.pthread_mutexattr_setrobust, _ROBUST),
            (_quick.pthread_mutexattr_settype, _ERROR_CHECK),
        ):
            _check_setup(function(ctypes.byref(attributes), *arguments))
        _check_setup(
            _quick.pthread_mutex_init(mutex._address, ctypes.addressof(attributes))
        )
        _quick.pthread_mutexattr_destroy(ctypes.byref(attributes))
        return mutex

    @classmethod
    def attach(cls, buffer: mmap.mmap, offset: int) -> RobustMutex:
        """Use the mutex that ``create`` made at ``offset`` (bytes) of this buffer."""
        return cls(buffer, offset)

    def timedlock(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> bool:
        """Lock; True when the previous holder died and its work needs repair.

        The mutex itself is made consistent before this returns. Should the caller die
        during the repair, the next locker gets True as well.

        Raises:
            LockTimeoutError: not free within ``timeout_s`` seconds.
            LockMisuseError: this thread holds it already.
            LockNotRecoverableError: the mutex can never be locked again.
        """
        for _ in range(TRIES):
            code = self._trylock(self._address)
            if code != errno.EBUSY:
                break
        else:
            code = self._wait(timeout_s)
        if code == 0:
            return False
        if code == errno.EOWNERDEAD:
            _quick.pthread_mutex_consistent(self._address)
            self._stats[_RECOVERIES] += 1
            return True
        raise self._error(code, timeout_s)

    def unlock(self) -> None:
        """Unlock.

        Raises:
            LockMisuseError: this thread does not hold it.
        """
        code = self._unlock(self._address)
        if code:
            raise self._error(code, 0.0)

    def holder_tid(self) -> int | None:
        """Kernel thread id of the holder, None when free. A hint: read without locking.

        The first word of a robust mutex is the futex, which holds the thread id
        because the kernel must find it there when the holder dies.
        """
        return (self._word.value & _FUTEX_TID_MASK) or None

    def stats(self) -> LockStats:
        """Counters since creation, over all processes."""
        return LockStats(*self._stats)

    def close(self) -> None:
        """Let go of the buffer; the mutex lives on for other processes."""
        self._trylock = self._unlock = _refuse_closed
        self._stats.release()
        del self._word, self._region

    def _wait(self, timeout_s: float) -> int:
        """Block until locked or timed out; count the wait once the lock is ours."""
        started = time.monotonic_ns()
        deadline = time.time_ns() + int(timeout_s * _NS_PER_S)
        code: int = _blocking.pthread_mutex_timedlock(
            self._address, ctypes.byref(_Timespec(*divmod(deadline, _NS_PER_S)))
        )
        if code in (0, errno.EOWNERDEAD):
            waited = time.monotonic_ns() - started
            stats = self._stats
            stats[_WAITS] += 1
            stats[_WAIT_TOTAL_NS] += waited
            stats[_WAIT_MAX_NS] = max(stats[_WAIT_MAX_NS], waited)
        return code

    def _error(self, code: int, timeout_s: float) -> SemiPDError:
        if code == errno.ETIMEDOUT:
            return LockTimeoutError(
                f"shared lock not free after {timeout_s:g} s",
                why=f"thread {self.holder_tid()} holds it and does not go on",
                mend="end that process: its death frees the lock",
            )
        if code in (errno.EDEADLK, errno.EPERM):
            return LockMisuseError(f"shared lock misused: {os.strerror(code)}")
        return LockNotRecoverableError(
            f"shared lock unusable: {os.strerror(code)}",
            mend="restart the instance",
        )


def _check_setup(code: int) -> None:
    """Raise what a pthread set-up call returned."""
    if code:
        raise OSError(code, f"robust mutex: {os.strerror(code)}")


def _refuse_closed(address: int) -> int:
    """Stands in for the pthread calls after ``close``: the memory may be gone."""
    raise LockMisuseError("shared lock used after close")
