# SPDX-License-Identifier: Apache-2.0
"""Pair after pair dies before it has read what the one before left."""

from __future__ import annotations

import numpy as np
from sglang.semi_pd.memory.block_table import BlockTable
from sglang.semi_pd.server.dead_slots import DeadSlots
from sglang.semi_pd.utils import InstanceRole
from table_processes import assert_in_order, worker

LABEL = 7 << 16
PAIR = (InstanceRole.PREFILL, InstanceRole.DECODE)


def pair(table: BlockTable, generation: int) -> tuple[BlockTable, BlockTable]:
    """A prefill and a decode worker."""
    prefill, decode = (worker(table, role, generation) for role in PAIR)
    return prefill, decode


def slot(one: BlockTable) -> int:
    assert one.lease is not None
    return one.lease.slot


def serve(table: BlockTable, generation: int) -> list[int]:
    """A pair with a request: decode has its row and some pages, borrows others."""
    prefill, decode = pair(table, generation)
    cached, own = prefill.take_pages(3), prefill.take_pages(2)
    rows = prefill.take_rows(2)
    assert cached is not None and own is not None and rows is not None
    prefill.share_pages(cached, slot(decode))
    prefill.move_pages(own, slot(decode))
    prefill.move_row(rows[0], slot(decode), LABEL)
    decode.take_pages(4)
    decode.set_reserve(slot(decode), 4)
    return [*cached, *own]


def test_a_pair_has_begun_when_it_has_the_slots_of_older_ones(
    table: BlockTable,
) -> None:
    dead = DeadSlots([table])
    serve(table, 1)
    assert dead.had_begun([1])
    serve(table, 2)
    assert not dead.had_begun([2])
    assert dead.had_begun([1, 2]), "the second took over from the first in a rotation"
    for old in table.slots_of([1]):
        table.reclaim(old)
    assert dead.had_begun([2])


def test_any_rank_may_not_have_begun(table: BlockTable) -> None:
    other = BlockTable.create(num_pages=8, num_rows=2, page_size=1)
    pair(table, 2)
    for generation in (1, 2):
        pair(other, generation)
    dead = DeadSlots([table, other])
    assert not dead.had_begun([2])
    dead.join([2])
    assert len(table.slots_of([2])) == 2, "it has begun here"
    assert not other.slots_of([2])


def test_slots_do_not_run_out(table: BlockTable) -> None:
    """What the first pair had is as it was, and can be kept in the end."""
    dead = DeadSlots([table])
    pages = serve(table, 1)
    usage = table.usage()
    for generation in range(2, 40):
        prefill, decode = pair(table, generation)
        prefill.take_pages(1)
        decode.take_rows(1)
        decode.set_reserve(slot(decode), 2)
        dead.join([generation])
        assert_in_order(table)
        assert not table.slots_of(range(2, generation + 1))
    assert table.usage().pages_free == usage.pages_free - 38
    successor, _ = pair(table, 40)
    gone = table.slots_of(range(1, 40))
    labels = [one.label for old in gone for one in table.labelled_rows(old)]
    assert labels == [LABEL]
    owners = table.page_owners()
    assert np.isin(owners[pages], gone).all()
    for old in gone:
        keep = [page for page in pages if owners[page] == old]
        table.reclaim(old, keep_pages=keep, new_owner=slot(successor))
    assert_in_order(table)
    after = table.usage()
    assert (after.pages_used, after.rows_total - after.rows_free) == (len(pages), 0)
    assert (after.borrows, after.pages_reserved) == (0, 0)


def test_half_of_it_was_taken_over(table: BlockTable) -> None:
    """The next pair died amid it: what it has of the first goes on with the rest."""
    dead = DeadSlots([table])
    pages = serve(table, 1)
    prefill, _ = pair(table, 2)
    first = table.slot_of(InstanceRole.PREFILL, 1)
    keep = [page for page in pages if table.page_owners()[page] == first]
    table.reclaim(first, keep_pages=keep, new_owner=slot(prefill))
    assert not dead.had_begun([2])
    dead.join([2])
    assert_in_order(table)
    (left,) = table.slots_of(range(1, 3))
    assert (table.page_owners()[pages] == left).all()
    assert [one.label for one in table.labelled_rows(left)] == [LABEL]


def test_pairs_that_did_not_start_are_joined_too(table: BlockTable) -> None:
    """Two attempts failed before the pair that died."""
    for generation in (1, 2, 3, 4):
        pair(table, generation)
    DeadSlots([table]).join([4])
    assert len(table.slots_of(range(1, 5))) == 2


def test_nothing_is_joined_to_a_pair_that_had_begun(table: BlockTable) -> None:
    pair(table, 3)
    pair(table, 4)
    DeadSlots([table]).join([3, 4])
    assert len(table.slots_of([3, 4])) == 4
