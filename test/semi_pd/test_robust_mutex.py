# SPDX-License-Identifier: Apache-2.0
"""A lock that survives its holder, and the nameless memory it lives in."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest
from sglang.semi_pd.memory.robust_mutex import (
    ALIGNMENT,
    REGION_BYTES,
    LockMisuseError,
    LockNotRecoverableError,
    LockTimeoutError,
    RobustMutex,
)
from sglang.semi_pd.memory.shared_memory import SharedMemory
from table_processes import fork, kill, wait


@pytest.fixture
def memory():
    shared = SharedMemory.create("test", 4096)
    yield shared
    shared.close()


@pytest.fixture
def mutex(memory):
    made = RobustMutex.create(memory.buffer, ALIGNMENT)
    yield made
    made.close()


def hold_for_ever(mutex: RobustMutex) -> None:
    mutex.timedlock()
    while True:
        time.sleep(1)


def fork_holder(mutex: RobustMutex) -> int:
    pid = fork(lambda: hold_for_ever(mutex))
    while mutex.holder_tid() != pid:
        time.sleep(0.001)
    return pid


def test_lock_and_unlock(mutex):
    assert mutex.holder_tid() is None
    assert mutex.timedlock() is False
    assert mutex.holder_tid() == threading.get_native_id()
    mutex.unlock()
    assert mutex.holder_tid() is None
    assert mutex.stats().waits == 0


def test_excludes_processes(memory, mutex):
    counter = memory.ndarray(np.int64, 1, 1024)

    def add() -> None:
        own = RobustMutex.attach(memory.buffer, ALIGNMENT)
        for _ in range(2000):
            own.timedlock()
            counter[0] = int(counter[0]) + 1
            own.unlock()

    pids = [fork(add) for _ in range(3)]
    assert [wait(pid) for pid in pids] == [0, 0, 0]
    assert counter[0] == 6000


def test_excludes_threads(mutex):
    counter = 0

    def add() -> None:
        nonlocal counter
        for _ in range(2000):
            mutex.timedlock()
            value = counter
            counter = value + 1
            mutex.unlock()

    threads = [threading.Thread(target=add) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter == 6000


def test_death_of_the_holder_frees_it_and_is_told(mutex):
    kill(fork_holder(mutex))
    assert mutex.timedlock(1.0) is True
    mutex.unlock()
    assert mutex.timedlock() is False
    mutex.unlock()
    assert mutex.stats().recoveries == 1


def test_waiter_is_woken_by_the_holders_death(mutex):
    pid = fork_holder(mutex)
    threading.Timer(0.1, os.kill, (pid, signal.SIGKILL)).start()
    started = time.monotonic()
    assert mutex.timedlock(5.0) is True
    assert 0.05 < time.monotonic() - started < 2.0
    mutex.unlock()
    wait(pid)
    stats = mutex.stats()
    assert stats.waits == 1
    assert stats.wait_max_ns == stats.wait_total_ns > 50_000_000


def test_death_during_the_repair_is_told_again(mutex):
    kill(fork_holder(mutex))
    kill(fork_holder(mutex))
    assert mutex.timedlock() is True
    mutex.unlock()


def test_stopped_holder_times_out_by_name_and_is_freed_by_its_end(mutex):
    pid = fork_holder(mutex)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(LockTimeoutError, match=f"thread {pid} holds it"):
        mutex.timedlock(0.05)
    kill(pid)
    assert mutex.timedlock() is True
    mutex.unlock()


def test_misuse_is_refused(mutex):
    with pytest.raises(LockMisuseError):
        mutex.unlock()
    mutex.timedlock()
    with pytest.raises(LockMisuseError):
        mutex.timedlock(0.1)
    mutex.unlock()


def test_use_after_close_is_refused(memory):
    mutex = RobustMutex.create(memory.buffer, 0)
    mutex.close()
    with pytest.raises(LockMisuseError, match="after close"):
        mutex.timedlock()


def test_memory_that_is_no_mutex_is_refused(memory, mutex):
    kill(fork_holder(mutex))
    mutex._trylock(mutex._address)
    mutex.unlock()  # without having been made consistent
    with pytest.raises(LockNotRecoverableError):
        mutex.timedlock(0.1)


@pytest.mark.parametrize("offset", [-64, 8, 4096 - REGION_BYTES + ALIGNMENT])
def test_bad_offset(memory, offset):
    with pytest.raises(ValueError, match="offset"):
        RobustMutex.create(memory.buffer, offset)


def test_memory_is_shared_and_nameless(memory):
    before = set(os.listdir("/dev/shm"))
    other = SharedMemory.attach(memory.fd)
    other.ndarray(np.int32, (2, 3), 64)[1, 2] = 7
    assert memory.ndarray(np.int32, (2, 3), 64)[1, 2] == 7
    assert set(os.listdir("/dev/shm")) == before
    other.close()


def test_size_is_sealed(memory):
    with pytest.raises(PermissionError):
        os.ftruncate(memory.fd, 100)
    with pytest.raises(PermissionError):
        os.ftruncate(memory.fd, 8192)


def test_too_little_memory_is_an_error_and_leaks_nothing():
    fds = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="needs"):
        SharedMemory.create("test", 1 << 50)
    assert len(os.listdir("/proc/self/fd")) == fds


def test_sparse_memory_takes_nothing_until_touched():
    shared = SharedMemory.create("test", 1 << 30, reserve=False)
    assert os.fstat(shared.fd).st_blocks == 0
    shared.close()
    reserved = SharedMemory.create("test", 1 << 20)
    assert os.fstat(reserved.fd).st_blocks * 512 >= 1 << 20
    reserved.close()


def test_wrong_memory_is_refused(tmp_path, memory):
    with pytest.raises(ValueError, match="nbytes"):
        SharedMemory.create("test", 0)
    with pytest.raises(ValueError, match="offset"):
        memory.ndarray(np.int64, 513)
    with (tmp_path / "file").open("w+b") as file, pytest.raises(ValueError, match="fd"):
        SharedMemory.attach(file.fileno())


def test_close_gives_back_every_descriptor():
    fds = len(os.listdir("/proc/self/fd"))
    shared = SharedMemory.create("test", 4096)
    view = shared.ndarray(np.uint8, 4096)
    shared.close()
    shared.close()
    view[0] = 1  # the mapping lives as long as the view
    del view, shared
    assert len(os.listdir("/proc/self/fd")) == fds
