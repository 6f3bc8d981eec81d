# SPDX-License-Identifier: Apache-2.0
"""Workers killed at named and at random instants: nothing is lost, nothing doubled."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable

import numpy as np
import pytest
from sglang.semi_pd.memory.block_table import BlockTable
from sglang.semi_pd.memory.shared_memory import SharedMemory
from sglang.semi_pd.utils import InstanceRole
from table_processes import (
    SOAK,
    assert_in_order,
    fork,
    kill,
    run_to_crash,
    wait,
    worker,
)

PAGES, ROWS = 512, 32
REPEATS = 20 if SOAK else 5
KILLS = 1000 if SOAK else 60
KILLS_INSIDE = 20 if SOAK else 1


class Scene:
    """A table with a victim and a survivor who both own, lend and borrow pages."""

    def __init__(self) -> None:
        self.table = BlockTable.create(num_pages=PAGES, num_rows=ROWS, page_size=16)
        self.victim = worker(self.table, InstanceRole.PREFILL)
        self.survivor = worker(self.table, InstanceRole.DECODE)
        self.pages = self.victim.take_pages(40)
        self.rows = self.victim.take_rows(4)
        self.lent = self.survivor.take_pages(20)
        self.survivor_rows = self.survivor.take_rows(2)
        self.victim.share_pages(self.lent[:10])
        self.survivor.share_pages(self.pages[:10])

    def owned_by_survivor(self) -> list[int]:
        """Pages and rows, as the table has them."""
        slot = self.survivor.lease.slot
        owned = np.flatnonzero(self.table.page_owners() == slot).tolist()
        return owned + np.flatnonzero(self.table.row_owners() == slot).tolist()


VICTIMS_WORK: dict[str, Callable[[Scene], object]] = {
    "section.entered": lambda s: s.victim.take_pages(1),
    "take.begun": lambda s: s.victim.take_pages(30),
    "take.owned": lambda s: s.victim.take_pages(30),
    "take.counted": lambda s: s.victim.take_rows(3),
    "rows.generation": lambda s: s.victim.take_rows(3),
    "give.begun": lambda s: s.victim.give_pages(s.pages),
    "give.freed": lambda s: s.victim.give_pages(s.pages),
    "give.counted": lambda s: s.victim.give_rows(s.rows),
    "move.begun": lambda s: s.victim.move_pages(s.pages, s.survivor.lease.slot),
    "move.owned": lambda s: s.victim.move_pages(s.pages, s.survivor.lease.slot),
    "move.counted": lambda s: s.victim.move_row(s.rows[0], s.survivor.lease.slot),
    "share.begun": lambda s: s.victim.share_pages(s.lent),
    "share.borrowed": lambda s: s.victim.share_pages(s.lent),
    "unshare.begun": lambda s: s.victim.unshare(s.lent[:10]),
    "unshare.dropped": lambda s: s.victim.unshare(s.lent[:10]),
    "unshare.counted": lambda s: s.victim.unshare(s.lent[:10]),
    "reserve.counted": lambda s: s.victim.set_reserve(s.victim.lease.slot, 9),
    "register.epoch": lambda s: s.table.register_worker(InstanceRole.PREFILL, 2),
}


def assert_victim_leaves_all_but_the_lent(scene: Scene) -> None:
    """Reclaim the victim, then let the survivor give up everything."""
    scene.table.reclaim(scene.victim.lease.slot)
    assert_in_order(scene.table)
    scene.survivor.give_pages(scene.lent)
    scene.survivor.give_rows(scene.survivor_rows)
    scene.survivor.unshare(scene.pages[:10])
    usage = scene.table.usage()
    assert (usage.pages_free, usage.rows_free, usage.borrows) == (PAGES, ROWS, 0)
    assert_in_order(scene.table)
    scene.table.close()


@pytest.mark.parametrize("repeat", range(REPEATS))
@pytest.mark.parametrize("point", VICTIMS_WORK)
def test_death_at_each_point_of_each_change(point, repeat):
    scene = Scene()
    owned = scene.owned_by_survivor()
    assert run_to_crash(point, lambda: VICTIMS_WORK[point](scene))
    assert_in_order(scene.table)
    usage = scene.table.usage()
    assert (usage.lock_recoveries, usage.repairs) == (1, 1)
    assert scene.owned_by_survivor() == owned  # nothing reached it half way
    assert_victim_leaves_all_but_the_lent(scene)


@pytest.mark.parametrize("repeat", range(REPEATS))
@pytest.mark.parametrize(
    "point", ["repair.journal", "repair.borrows", "repair.rebuilt"]
)
@pytest.mark.parametrize("change", ["take.owned", "give.freed", "move.owned"])
def test_death_during_the_repair(change, point, repeat):
    scene = Scene()
    owned = scene.owned_by_survivor()
    assert run_to_crash(change, lambda: VICTIMS_WORK[change](scene))
    assert run_to_crash(point, lambda: scene.table.usage())
    assert_in_order(scene.table)
    assert scene.owned_by_survivor() == owned
    assert_victim_leaves_all_but_the_lent(scene)


@pytest.mark.parametrize("repeat", range(REPEATS))
@pytest.mark.parametrize(
    "step", ["fenced", "borrows", "kept", "pages", "rows"], ids=str
)
def test_death_of_the_supervisor_during_a_reclaim(step, repeat):
    """Whoever calls reclaim again, with the same wishes, completes it."""
    scene = Scene()
    slot, heir = scene.victim.lease.slot, scene.survivor.lease.slot

    def reclaim() -> None:
        scene.table.reclaim(slot, scene.pages[:5], scene.rows[:1], heir)

    assert run_to_crash(f"reclaim.{step}", reclaim)
    reclaim()
    assert_in_order(scene.table)
    scene.survivor.give_pages(scene.pages[:5])
    scene.survivor.give_rows(scene.rows[:1])
    assert_victim_leaves_all_but_the_lent(scene)


@pytest.mark.parametrize("repeat", range(REPEATS))
@pytest.mark.parametrize(
    "step",
    ["fenced", "summed", "begun", "borrowed", "counted", "borrows", "pages", "rows"],
)
def test_death_while_a_successor_inherits(step, repeat):
    """Calling inherit again completes it; nothing is lost and nothing counted twice."""
    scene = Scene()
    heir = worker(scene.table, InstanceRole.PREFILL)
    heir.share_pages(scene.lent[:3])  # both borrow some of the same
    scene.table.set_reserve(scene.victim.lease.slot, 7)
    slot, to_slot = scene.victim.lease.slot, heir.lease.slot
    before = scene.table.refcounts(np.arange(1, PAGES + 1))
    assert run_to_crash(f"inherit.{step}", lambda: scene.table.inherit(slot, to_slot))
    assert_in_order(scene.table)
    scene.table.inherit(slot, to_slot)
    assert_in_order(scene.table)
    assert (scene.table.refcounts(np.arange(1, PAGES + 1)) == before).all()
    heir.give_rows(scene.rows)
    heir.give_pages(scene.pages)
    heir.unshare(scene.lent[:10])
    heir.unshare(scene.lent[:3])
    scene.victim = heir
    assert_victim_leaves_all_but_the_lent(scene)


def churn(mine: BlockTable, seed: int) -> None:
    """Take, share, hand on and give for ever, checking that nobody has the same."""
    choose = random.Random(seed)
    while True:
        pages = mine.take_pages(choose.choice((1, 16, 64)))
        if pages is None:
            continue
        mine.share_pages(pages[:8])
        rows = mine.take_rows(2)
        if rows is not None:
            mine.set_allocated(rows, [32, 32])
            mine.set_committed(rows, [16, 32])
            mine.give_rows(rows)
        half = len(pages) // 2
        mine.give_pages(pages[:half])
        mine.unshare(pages[:8])
        mine.give_pages(pages[half:])


def live_peer(fd: int, marks: np.ndarray) -> None:
    """Work on until told to stop; every page must be nobody else's."""
    mine = worker(BlockTable.attach(fd), InstanceRole.DECODE)
    marks[0] = 1
    while marks[0] == 1:
        pages = mine.take_pages(8)
        if pages is not None:
            assert (mine.page_owners()[pages] == mine.lease.slot).all()
            mine.give_pages(pages)


def test_random_kills_with_a_live_peer():
    table = BlockTable.create(num_pages=PAGES, num_rows=ROWS, page_size=16)
    marks = SharedMemory.create("stop", 64).ndarray(np.uint8, 64)
    peer = fork(lambda: live_peer(table.fd, marks))
    while not marks[0]:
        time.sleep(0.001)
    choose = random.Random(20260101)
    for number in range(KILLS):
        victim = worker(table)
        pid = fork(lambda: churn(victim, number))  # noqa: B023  (run at once)
        time.sleep(choose.uniform(0.001, 0.008))
        kill(pid)
        table.reclaim(victim.lease.slot)
        assert_in_order(table)
        assert table.usage().borrows == 0
    marks[0] = 2
    assert wait(peer) == 0
    usage = table.usage()
    print(f"\n{KILLS} kills, {usage.lock_recoveries} of them inside the section")
    assert usage.lock_recoveries >= KILLS_INSIDE
    assert (usage.pages_free, usage.rows_free) == (PAGES, ROWS)
    assert usage.audits_failed == 0


def test_nothing_stays_behind_when_everybody_is_killed():
    """The memory has no name, so no file outlives its last process."""
    before = set(os.listdir("/dev/shm"))

    def make_and_wait() -> None:
        table = BlockTable.create(num_pages=PAGES, num_rows=ROWS, page_size=16)
        pid = fork(lambda: churn(worker(table), 1))
        time.sleep(0.05)
        kill(pid)
        os.kill(os.getpid(), 9)

    assert wait(fork(make_and_wait)) == -9
    assert set(os.listdir("/dev/shm")) == before
