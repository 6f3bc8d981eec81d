# SPDX-License-Identifier: Apache-2.0
"""What the block table promises, one promise a test."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
from sglang.semi_pd.memory.block_table import (
    BlockTable,
    LayoutMismatchError,
)
from sglang.semi_pd.memory.block_table_layout import Word
from sglang.semi_pd.memory.robust_mutex import REGION_BYTES, LockTimeoutError
from sglang.semi_pd.memory.shared_memory import SharedMemory
from sglang.semi_pd.utils import InstanceRole
from table_processes import PAGES, ROWS, SOAK, assert_in_order, fork, wait, worker


def test_pages_are_taken_lowest_first_and_never_zero(prefill):
    assert prefill.take_pages(3).tolist() == [1, 2, 3]
    rest = prefill.take_pages(PAGES - 3)
    assert rest.dtype == np.int64
    assert sorted(rest.tolist()) == list(range(4, PAGES + 1))


def test_pages_that_come_back_keep_their_order(prefill, decode):
    """A request's pages follow each other, however often they were somebody's."""
    for taker in (prefill, decode) * 2:
        pages = taker.take_pages(20)
        assert pages.tolist() == list(range(1, 21))
        taker.give_pages(pages)


def test_all_or_nothing(prefill):
    prefill.take_pages(60)
    assert prefill.take_pages(5) is None
    assert prefill.take_up_to(10, 5) is None
    assert len(prefill.take_up_to(10, 4)) == 4
    assert prefill.take_pages(1) is None
    assert prefill.take_pages(0).tolist() == []


@pytest.mark.parametrize("n, least", [(-1, 0), (2, 3), (2, -1)])
def test_bad_counts(prefill, n, least):
    with pytest.raises(ValueError, match="n, min_n"):
        prefill.take_up_to(n, least)


@pytest.mark.parametrize(
    "ids, says",
    [
        ([1, 2, 2], r"\[2\] given twice"),
        ([0], r"\[0\] are not within 1..64"),
        ([1, 65], r"\[65\] are not within"),
        ([9], "9 is free"),
        ([4], "4 is slot 2's"),
        ([1.5], "integers"),
        ([[1]], "flat"),
    ],
)
def test_wrong_giving_changes_nothing(prefill, decode, ids, says):
    prefill.take_pages(3)
    decode.take_pages(1)
    with pytest.raises(ValueError, match=says):
        prefill.give_pages(ids)
    assert prefill.usage().pages_used == 4


def test_double_free_is_caught(prefill):
    pages = prefill.take_pages(4)
    prefill.give_pages(pages)
    with pytest.raises(ValueError, match="give_pages: not owned by slot 1: 1 is free"):
        prefill.give_pages(pages)


def test_hand_over(prefill, decode):
    pages = prefill.take_pages(4)
    prefill.move_pages(pages, decode.lease.slot)
    with pytest.raises(ValueError, match="is slot 2's"):
        prefill.give_pages(pages)
    with pytest.raises(ValueError, match="to_slot"):
        decode.move_pages(pages, 9)
    decode.give_pages(pages)
    assert decode.usage().pages_free == PAGES


def test_a_shared_page_lives_until_its_last_holder_lets_go(prefill, decode):
    pages = prefill.take_pages(2)
    decode.share_pages(pages)
    decode.share_pages(pages[:1])
    assert decode.refcounts(pages).tolist() == [3, 2]
    prefill.give_pages(pages)
    assert prefill.usage().pages_shared == 2
    assert decode.unshare(pages) == 1
    assert decode.unshare(pages[:1]) == 1
    assert prefill.usage().pages_free == PAGES
    with pytest.raises(ValueError, match="not borrowed"):
        decode.unshare(pages)
    with pytest.raises(ValueError, match="are free"):
        decode.share_pages(pages)


def test_lending_to_another_worker(prefill, decode):
    pages = prefill.take_pages(2)
    prefill.share_pages(pages, to_slot=decode.lease.slot)
    with pytest.raises(ValueError, match="not borrowed"):
        prefill.unshare(pages)
    decode.unshare(pages)
    prefill.give_pages(pages)


def test_references_do_not_overflow(table, prefill, decode):
    pages = prefill.take_pages(1)
    table._core.state.page_borrows[decode.lease.slot, pages] = 0xFFFF
    table._core.words[Word.JOURNAL_OP] = 5  # have the next locker recount
    with pytest.raises(ValueError, match="65535 references"):
        prefill.share_pages(pages)
    assert table.reclaim(decode.lease.slot).borrows_dropped == 0xFFFF


def test_reserve_is_for_one_worker_only(prefill, decode):
    prefill.set_reserve(decode.lease.slot, 10)
    assert prefill.take_pages(PAGES - 9) is None
    assert len(prefill.take_up_to(PAGES, 1)) == PAGES - 10
    assert prefill.take_up_to(5, 0).tolist() == []
    assert len(decode.take_pages(10)) == 10
    with pytest.raises(ValueError, match="n_pages"):
        prefill.set_reserve(1, PAGES + 1)
    with pytest.raises(ValueError, match="slot"):
        prefill.set_reserve(5, 1)


def test_rows(prefill, decode):
    rows = prefill.take_rows(2)
    assert rows == [1, 2]
    assert all(type(row) is int for row in rows)
    prefill.set_allocated(rows, [16, 32])
    prefill.set_committed(rows, [10, 32])
    prefill.move_row(2, decode.lease.slot)
    state = prefill.row_state(2)
    assert (state.owner, state.generation) == (decode.lease.slot, 1)
    assert (state.committed, state.allocated) == (32, 32)
    with pytest.raises(ValueError, match="2 is slot 2's"):
        prefill.set_committed([2], [1])
    decode.give_rows([2])
    prefill.give_rows([1])
    assert prefill.take_rows(9) is None
    assert prefill.take_rows(2) == [1, 2]
    assert prefill.row_state(1).generation == 2
    assert prefill.row_state(1).allocated == 0


def test_as_many_rows_as_there_are(prefill, decode):
    kept = prefill.take_rows(ROWS - 3)
    assert len(decode.take_rows_up_to(64, leave=1)) == 2
    assert decode.take_rows_up_to(64, leave=1) == []
    assert len(decode.take_rows_up_to(64)) == 1
    prefill.give_rows(kept)
    assert len(decode.take_rows_up_to(4, leave=1)) == 4


@pytest.mark.parametrize(
    "call, lens, says",
    [
        ("set_committed", [17], "more committed than allocated"),
        ("set_allocated", [9], "less allocated than committed"),
        ("set_committed", [1, 2], "need 1 lengths"),
        ("set_allocated", [-1], "need 1 lengths of 0 or more"),
    ],
)
def test_bad_lengths(prefill, call, lens, says):
    rows = prefill.take_rows(1)
    prefill.set_allocated(rows, [16])
    prefill.set_committed(rows, [10])
    with pytest.raises(ValueError, match=says):
        getattr(prefill, call)(rows, lens)
    with pytest.raises(ValueError, match="row"):
        prefill.row_state(ROWS + 1)
    with pytest.raises(ValueError, match="n: -1"):
        prefill.take_rows(-1)


def test_usage(table, prefill, decode):
    prefill.take_pages(5)
    decode.take_pages(3)
    decode.give_pages([6])
    usage = table.usage()
    assert usage.pages_by_role == {"resident": 0, "prefill": 5, "decode": 2}
    assert usage.pages_by_slot == {1: 5, 2: 2}
    assert (usage.pages_used, usage.pages_peak, usage.pages_free) == (7, 8, PAGES - 7)
    table.audit()
    assert table.usage().audits_run == usage.audits_run + 1
    assert table.usage().audits_failed == 0


def test_audit_names_what_is_wrong(table, prefill):
    prefill.take_pages(4)
    state = table._core.state
    state.page_owner[2] = 0
    state.row_committed[1] = 5
    violations = " ".join(table.audit().violations)
    assert "slot 1 owns 3, counted 4" in violations
    assert "committed than allocated" in violations
    assert table.usage().audits_failed == 1
    state.page_owner[2] = 1
    state.row_committed[1] = 0


def test_an_exception_inside_a_change_is_undone(prefill, monkeypatch):
    def interrupt(name):
        if name == "take.owned":
            raise KeyboardInterrupt

    monkeypatch.setattr("sglang.semi_pd.memory.id_pool._crash_point", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prefill.take_pages(4)
    assert prefill.usage().pages_free == PAGES


def test_another_process_sees_and_changes_the_same_table(table, prefill):
    prefill.take_pages(2)

    def other() -> None:
        mine = BlockTable.attach(table.fd)
        assert mine.token == table.token
        mine.register_worker(InstanceRole.DECODE, 1)
        pages = mine.take_pages(3)
        assert pages is not None and pages.tolist() == [3, 4, 5]
        mine.close()

    assert wait(fork(other)) == 0
    assert table.usage().pages_by_role["decode"] == 3


def test_other_memory_is_refused_with_one_line(table):
    state = table._core.state

    def attach() -> str:
        with pytest.raises(LayoutMismatchError) as caught:
            BlockTable.attach(table.fd)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    for word, says in (
        (Word.MAGIC, "not a block table"),
        (Word.VERSION, "version"),
        (Word.FINGERPRINT, "another layout"),
    ):
        kept = state.words[word]
        state.words[word] = kept + 1
        assert says in attach()
        state.words[word] = kept
    small = SharedMemory.create("small", REGION_BYTES)
    with pytest.raises(LayoutMismatchError, match="too small"):
        BlockTable.attach(small.fd)


@pytest.mark.parametrize("name", ["num_pages", "num_rows", "page_size", "num_workers"])
def test_bad_sizes(name):
    sizes = {"num_pages": 4, "num_rows": 4, "page_size": 1, "num_workers": 2}
    with pytest.raises(ValueError, match=name):
        BlockTable.create(**{**sizes, name: 0})


def test_a_stopped_holder_is_an_error_not_a_hang(table):
    patient = BlockTable.attach(table.fd, lock_timeout_s=0.05)

    def hold() -> None:
        with table._core:
            time.sleep(60)

    pid = fork(hold)
    while table._core.state.mutex.holder_tid() is None:
        time.sleep(0.001)
    with pytest.raises(LockTimeoutError):
        patient.usage()
    os.kill(pid, 9)
    wait(pid)
    assert patient.usage().lock_recoveries == 1


@pytest.mark.parametrize("batch", [1, 16, 256])
def test_four_processes_neither_lose_nor_double_a_page(batch):
    """Each page has a mark in shared memory: set by its taker, who must find it 0."""
    operations, processes = (50_000, 4) if SOAK else (5_000, 4)
    table = BlockTable.create(num_pages=4096, num_rows=8, page_size=16)
    marks_memory = SharedMemory.create("marks", 4097)
    marks = marks_memory.ndarray(np.uint8, 4097)
    go = marks_memory.ndarray(np.uint8, 1)

    def work() -> None:
        mine = worker(BlockTable.attach(table.fd))
        while not go[0]:
            time.sleep(0.001)
        for _ in range(operations // 2):
            pages = mine.take_pages(batch)
            assert not np.count_nonzero(marks[pages])
            marks[pages] = 1
            marks[pages] = 0
            mine.give_pages(pages)

    pids = [fork(work) for _ in range(processes)]
    while len(table.usage().pages_by_slot) < processes:
        time.sleep(0.001)
    started = time.perf_counter()
    go[0] = 1
    assert [wait(pid) for pid in pids] == [0] * processes
    rate = operations * processes / (time.perf_counter() - started)
    print(f"\n{processes} processes, batch {batch}: {rate:,.0f} operations/s")
    assert_in_order(table)
    assert table.usage().pages_free == 4096
    if SOAK:
        assert rate >= 50_000
