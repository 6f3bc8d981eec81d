# SPDX-License-Identifier: Apache-2.0
"""An audit tells a leak from a page whose explanation is still under way."""

from __future__ import annotations

import time

import numpy as np
import pytest
from sglang.semi_pd.memory.block_table import BlockTable
from sglang.semi_pd.workers import idle_audit
from sglang.semi_pd.workers.idle_audit import IdleAudit
from table_processes import worker


@pytest.fixture
def table() -> BlockTable:
    return worker(BlockTable.create(num_pages=64, num_rows=8, page_size=4))


class Looks:
    """An audit whose clock is the test's, and what its worker knows of."""

    def __init__(self, table: BlockTable, monkeypatch: pytest.MonkeyPatch) -> None:
        self.known: np.ndarray | None = np.empty(0, np.int64)
        self.now = 100.0
        monkeypatch.setattr(idle_audit.time, "monotonic", lambda: self.now)
        self._audit = IdleAudit(table, lambda: self.known)

    def after(self, seconds: float, work_done: int = 1) -> tuple[str, ...] | None:
        assert self._audit.when_idle(work_done) is None, "it has just been busy"
        self.now += seconds
        report = self._audit.when_idle(work_done)
        return None if report is None else tuple(report.violations)


@pytest.fixture
def looks(table: BlockTable, monkeypatch: pytest.MonkeyPatch) -> Looks:
    return Looks(table, monkeypatch)


def test_a_leak_is_reported_at_the_second_look(table: BlockTable, looks: Looks) -> None:
    pages = table.take_pages(3)
    assert pages is not None
    assert looks.after(20) == ()
    assert looks.after(0.1) is None
    [line] = looks.after(3) or ()
    assert "3 pages are owned and used by nobody" in line
    assert str(pages.tolist()) in line
    assert table.usage().audits_failed == 1


def test_what_is_explained_meanwhile_is_no_leak(
    table: BlockTable, looks: Looks
) -> None:
    pages = table.take_pages(3)
    assert pages is not None
    assert looks.after(20) == ()
    looks.known = pages
    assert looks.after(3) == ()
    table.give_pages(pages)
    assert looks.after(20, work_done=2) == ()
    looks.known = np.empty(0, np.int64)
    assert looks.after(3, work_done=2) == ()
    assert table.usage().audits_failed == 0


def test_a_page_that_is_used_and_not_owned(looks: Looks) -> None:
    looks.known = np.array([7])
    assert looks.after(20) == ()
    [line] = looks.after(3) or ()
    assert "1 pages are used and not owned: [7]" in line


def test_it_audits_once_after_work(looks: Looks) -> None:
    assert looks.after(20, work_done=5) == ()
    assert looks.after(20, work_done=5) is None
    assert looks.after(20, work_done=6) == ()


def test_while_messages_are_under_way_nothing_is_suspected(
    table: BlockTable, looks: Looks
) -> None:
    table.take_pages(3)
    looks.known = None
    assert looks.after(20) == ()
    assert looks.after(20, work_done=2) == ()


def test_a_moment_without_work_is_not_used(looks: Looks) -> None:
    for work_done in range(1, 100):
        assert looks.after(idle_audit.QUIET_S / 2, work_done) is None
    assert looks.after(idle_audit.QUIET_S, 100) == ()


def test_a_large_cache_is_looked_at_as_fast_as_the_table() -> None:
    large = worker(BlockTable.create(num_pages=700_000, num_rows=8, page_size=1))
    pages = large.take_up_to(500_000, 0)
    assert pages is not None
    shuffled = np.random.default_rng(0).permutation(pages)

    def seconds(known: np.ndarray) -> float:
        audit = IdleAudit(large, lambda: known)
        began = time.perf_counter()
        assert audit.run().violations == ()
        return time.perf_counter() - began

    nothing = IdleAudit(large, lambda: None)
    began = time.perf_counter()
    for _ in range(5):
        nothing.run()
    alone = (time.perf_counter() - began) / 5
    # Sorted it took 20 times as long.
    assert min(seconds(shuffled) for _ in range(5)) < 4 * alone
