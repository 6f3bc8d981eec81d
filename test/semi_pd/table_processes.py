# SPDX-License-Identifier: Apache-2.0
"""Real processes for the block table's tests: forked, killed, and waited for."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from sglang.semi_pd.memory import id_pool
from sglang.semi_pd.memory.block_table import BlockTable
from sglang.semi_pd.utils import InstanceRole

SOAK = os.environ.get("SEMI_PD_SOAK") == "1"
PAGES, ROWS = 64, 8
"""Of the table of the fixtures in ``conftest.py``."""


def fork(work: Callable[[], None]) -> int:
    """Run ``work`` in a child; its exit code is 0, or 1 if ``work`` raised."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    finally:
        if code:
            import traceback

            traceback.print_exc()
        os._exit(code)


def wait(pid: int, timeout_s: float = 60.0) -> int:
    """Exit code of a child, negative for a signal; killed when it takes too long."""
    deadline = time.monotonic() + timeout_s
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.0005)


def kill(pid: int) -> int:
    """SIGKILL a child and wait for it."""
    os.kill(pid, signal.SIGKILL)
    return wait(pid)


def die_at(name: str, visit: int = 1) -> None:
    """Let this process kill itself when it passes a crash point for the n-th time."""
    left = visit

    def point(passed: str) -> None:
        nonlocal left
        if passed == name:
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    id_pool._crash_point = point


def run_to_crash(name: str, work: Callable[[], None], visit: int = 1) -> bool:
    """Whether ``work``, in a child, was killed at the named crash point."""

    def child() -> None:
        die_at(name, visit)
        work()

    return wait(fork(child)) == -signal.SIGKILL


def worker(
    table: BlockTable,
    role: InstanceRole = InstanceRole.PREFILL,
    generation: int = 0,
) -> BlockTable:
    """The same table, speaking for a newly registered worker."""
    return table.bound_to(table.register_worker(role, generation))


def assert_in_order(table: BlockTable) -> None:
    """The audit finds nothing, and free and owned are all."""
    report = table.audit()
    assert report.violations == ()
    assert report.pages_free + report.pages_owned == table.layout.num_pages
    assert report.rows_free + report.rows_owned == table.layout.num_rows
