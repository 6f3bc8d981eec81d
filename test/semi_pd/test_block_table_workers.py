# SPDX-License-Identifier: Apache-2.0
"""What the block table promises about workers that come, go, die, and are succeeded."""

from __future__ import annotations

import numpy as np
import pytest
from sglang.semi_pd.memory.block_table import (
    Answer,
    FencedError,
    LabelledRow,
)
from sglang.semi_pd.utils import InstanceRole
from table_processes import PAGES, assert_in_order, worker


def test_reclaim_keeps_what_the_heir_needs(table, prefill, decode):
    pages, rows = prefill.take_pages(10), prefill.take_rows(3)
    lent = decode.take_pages(4)
    prefill.share_pages(lent)
    decode.share_pages(pages[8:])
    report = table.reclaim(1, pages[:5], rows[:1], new_owner=decode.lease.slot)
    assert (report.pages_kept, report.pages_freed, report.pages_shared) == (5, 3, 2)
    assert (report.rows_kept, report.rows_freed, report.borrows_dropped) == (1, 2, 4)
    assert_in_order(table)
    decode.give_pages(np.concatenate([pages[:5], lent]))
    decode.unshare(pages[8:])
    assert table.usage().pages_free == PAGES
    again = table.reclaim(1)
    assert (again.pages_freed, again.rows_freed) == (0, 0)


@pytest.mark.parametrize("end", ["given", "reclaimed"])
def test_a_row_that_is_free_is_found_by_no_label(table, prefill, decode, end):
    """Whoever takes it and dies is not to have another's request in it."""
    rows = prefill.take_rows(2)
    for row in rows:
        prefill.move_row(row, decode.lease.slot, label=70 + row)
    assert len(table.labelled_rows(decode.lease.slot)) == 2
    if end == "given":
        decode.give_rows(rows)
    else:
        table.reclaim(decode.lease.slot)
    assert_in_order(table)
    assert prefill.take_rows(2) == rows
    assert table.labelled_rows(prefill.lease.slot) == []


def test_reclaim_refuses_what_the_dead_never_had(table, prefill, decode):
    prefill.take_pages(2)
    with pytest.raises(ValueError, match=r"keep_pages: \[3\] are not owned"):
        table.reclaim(1, [1, 3], new_owner=2)
    with pytest.raises(ValueError, match="new_owner: needed"):
        table.reclaim(1, [1])
    with pytest.raises(ValueError, match="new_owner: no worker in slot 7"):
        table.reclaim(1, [1], new_owner=7)
    with pytest.raises(ValueError, match="new_owner: 1 is the slot"):
        table.reclaim(1, new_owner=1)
    with pytest.raises(ValueError, match="slot: 99"):
        table.reclaim(99)


def test_the_dead_are_fenced_from_every_change(table, prefill):
    pages, rows = prefill.take_pages(2), prefill.take_rows(1)
    table.reclaim(prefill.lease.slot)
    successor = worker(table)
    assert successor.lease.slot == prefill.lease.slot
    successor.take_pages(2)
    for change in (
        lambda: prefill.take_pages(1),
        lambda: prefill.give_pages(pages),
        lambda: prefill.move_pages(pages, 1),
        lambda: prefill.share_pages(pages),
        lambda: prefill.unshare(pages),
        lambda: prefill.take_rows(1),
        lambda: prefill.give_rows(rows),
        lambda: prefill.move_row(rows[0], 1),
        lambda: prefill.set_committed(rows, [1]),
        lambda: prefill.set_allocated(rows, [1]),
    ):
        with pytest.raises(FencedError, match="declared dead"):
            change()


def test_a_table_without_worker_cannot_change(table):
    with pytest.raises(FencedError, match="no worker"):
        table.take_pages(1)


def test_a_row_is_found_by_its_label(table, prefill, decode):
    first, second = prefill.take_rows(2)
    prefill.move_row(first, decode.lease.slot, 2**64 - 1)
    prefill.move_row(second, decode.lease.slot)
    assert table.labelled_rows(decode.lease.slot) == [LabelledRow(first, 2**64 - 1)]
    decode.move_row(first, prefill.lease.slot)  # keeps its label
    assert table.labelled_rows(prefill.lease.slot) == [LabelledRow(first, 2**64 - 1)]
    prefill.give_rows([first])
    assert prefill.take_rows(1) == [first]
    assert table.labelled_rows(prefill.lease.slot) == []
    with pytest.raises(ValueError, match="slot: 99"):
        table.labelled_rows(99)


def test_a_successor_inherits_everything(table, prefill, decode):
    pages, rows = prefill.take_pages(5), prefill.take_rows(2)
    lent = decode.take_pages(3)
    prefill.share_pages(lent)
    table.set_reserve(prefill.lease.slot, 4)
    heir = table.bound_to(table.register_worker(InstanceRole.PREFILL, 2))
    old, new = prefill.lease.slot, heir.lease.slot
    report = table.inherit(old, new)
    assert (report.pages, report.rows, report.borrows) == (5, 2, 3)
    with pytest.raises(FencedError):
        prefill.take_pages(1)
    heir.give_pages(pages)
    heir.give_rows(rows)
    heir.unshare(lent)
    assert table.usage().pages_reserved == 4
    assert table.audit().ok
    assert table.register_worker(InstanceRole.DECODE, 3).slot == old  # free again


def test_inheriting_from_nobody_or_oneself_is_refused(table, prefill):
    slot = prefill.lease.slot
    with pytest.raises(ValueError, match="to_slot"):
        table.inherit(slot, slot)
    with pytest.raises(ValueError, match="from_slot"):
        table.inherit(0, slot)
    with pytest.raises(ValueError, match="no worker in slot 9"):
        table.inherit(slot, 9)
    assert len(prefill.take_pages(1)) == 1  # not fenced


def test_workers_say_what_they_hold(table, prefill, decode):
    prefill.take_pages(6)
    prefill.publish_held(leased=1, cached=3)
    prefill.publish_answer(Answer(7, is_busy=True))
    usage = table.usage()
    assert usage.leased_by_role["prefill"] == 1
    assert usage.cached_by_role["prefill"] == 3
    assert usage.running_by_role == {"resident": 0, "prefill": 2, "decode": 0}
    assert decode.answer_of(prefill.lease.slot) == Answer(7, is_busy=True)
    table.reclaim(prefill.lease.slot)
    assert table.usage().cached_by_role["prefill"] == 0
    assert decode.answer_of(prefill.lease.slot) == Answer(0, is_busy=False)


def test_workers_come_and_go(table):
    first = table.register_worker(InstanceRole.PREFILL, 7)
    assert table.lease == first
    table.take_pages(1)
    table.reclaim(first.slot)
    with pytest.raises(FencedError):
        table.take_pages(1)
    second = table.register_worker(InstanceRole.DECODE, 8)
    assert second.slot == first.slot
    assert second.epoch > first.epoch
    for _ in range(15):
        table.register_worker(InstanceRole.DECODE, 8)
    with pytest.raises(ValueError, match="no worker slot"):
        table.register_worker(InstanceRole.DECODE, 8)
