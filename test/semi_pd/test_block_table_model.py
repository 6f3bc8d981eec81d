# SPDX-License-Identifier: Apache-2.0
"""The block table against a model of sets: free and owned are all, and disjoint."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sglang.semi_pd.memory.block_table import BlockTable
from sglang.semi_pd.utils import InstanceRole
from table_processes import SOAK, run_to_crash, worker

PAGES, ROWS = 24, 5
ROLES = (InstanceRole.PREFILL, InstanceRole.DECODE)
WORKERS = st.integers(0, 1)
AMOUNTS = st.integers(0, 10)
CRASHES = st.sampled_from(
    ["section.entered", "take.begun", "take.owned", "take.counted", "rows.generation"]
    + ["give.begun", "give.freed", "give.counted", "share.begun", "share.borrowed"]
    + ["move.begun", "move.owned", "move.counted", "unshare.dropped"]
)
INHERIT_CRASHES = st.sampled_from(
    ["", "inherit.fenced", "inherit.summed", "inherit.begun", "inherit.borrowed"]
    + ["inherit.counted", "inherit.borrows", "inherit.pages", "inherit.rows"]
)


class TableModel(RuleBasedStateMachine):
    """Two workers on one table; what each should own is kept in plain sets."""

    def __init__(self) -> None:
        super().__init__()
        self.table = BlockTable.create(num_pages=PAGES, num_rows=ROWS, page_size=4)
        self.workers = [worker(self.table, role) for role in ROLES]
        self.pages: list[set[int]] = [set(), set()]
        self.rows: list[set[int]] = [set(), set()]
        self.labels: dict[int, int] = {}
        self.borrows: list[Counter[int]] = [Counter(), Counter()]
        self.reserve = [0, 0]

    def available(self, who: int) -> int:
        used = set().union(*self.pages, *self.borrows)
        return max(0, PAGES - len(used) - self.reserve[1 - who])

    def some(self, ids: set[int], amount: int) -> list[int]:
        return sorted(ids)[:amount]

    @rule(who=WORKERS, amount=AMOUNTS)
    def alloc(self, who: int, amount: int) -> None:
        available = self.available(who)
        taken = self.workers[who].take_pages(amount)
        assert (taken is None) == (amount > available)
        self.pages[who].update([] if taken is None else taken.tolist())

    @rule(who=WORKERS, amount=AMOUNTS, least=AMOUNTS)
    def extend(self, who: int, amount: int, least: int) -> None:
        least = min(least, amount)
        available = self.available(who)
        taken = self.workers[who].take_up_to(amount, least)
        if taken is None:
            assert available < least
        else:
            assert len(taken) == min(amount, available)
            self.pages[who].update(taken.tolist())

    @rule(who=WORKERS, amount=AMOUNTS)
    def free(self, who: int, amount: int) -> None:
        ids = self.some(self.pages[who], amount)
        self.workers[who].give_pages(ids)
        self.pages[who] -= set(ids)

    @rule(who=WORKERS, amount=AMOUNTS)
    def share(self, who: int, amount: int) -> None:
        ids = self.some(set().union(*self.pages), amount)
        self.workers[who].share_pages(ids)
        self.borrows[who].update(ids)

    @rule(who=WORKERS, amount=AMOUNTS)
    def unshare(self, who: int, amount: int) -> None:
        ids = self.some(set(self.borrows[who]), amount)
        self.workers[who].unshare(ids)
        self.borrows[who] -= Counter(ids)

    @rule(who=WORKERS, amount=AMOUNTS)
    def hand_over(self, who: int, amount: int) -> None:
        ids = self.some(self.pages[who], amount)
        self.workers[who].move_pages(ids, self.workers[1 - who].lease.slot)
        self.pages[who] -= set(ids)
        self.pages[1 - who] |= set(ids)

    @rule(who=WORKERS, amount=AMOUNTS)
    def keep_back(self, who: int, amount: int) -> None:
        self.table.set_reserve(self.workers[who].lease.slot, amount)
        self.reserve[who] = amount

    @rule(who=WORKERS, amount=st.integers(0, 3))
    def alloc_rows(self, who: int, amount: int) -> None:
        free = ROWS - len(self.rows[0]) - len(self.rows[1])
        taken = self.workers[who].take_rows(amount)
        assert (taken is None) == (amount > free)
        self.rows[who].update(taken or [])
        for row in taken or []:
            self.labels.pop(row, None)

    @precondition(lambda self: any(self.rows))
    @rule(fate=st.sampled_from(("give", "move")), label=st.integers(0, 2**64 - 1))
    def end_or_move_row(self, fate: str, label: int) -> None:
        who = 0 if self.rows[0] else 1
        row = min(self.rows[who])
        self.rows[who].remove(row)
        if fate == "give":
            self.workers[who].give_rows([row])
        else:
            self.workers[who].move_row(row, self.workers[1 - who].lease.slot, label)
            self.rows[1 - who].add(row)
            self.labels[row] = label or self.labels.get(row, 0)

    @rule(who=WORKERS, point=INHERIT_CRASHES)
    def succeed(self, who: int, point: str) -> None:
        """A successor inherits everything; whoever arranges it may die in between."""
        old = self.workers[who].lease.slot
        self.workers[who] = worker(self.table, ROLES[who])
        new = self.workers[who].lease.slot
        if point:
            run_to_crash(point, lambda: self.table.inherit(old, new))
        self.table.inherit(old, new)
        self.table.inherit(old, new)  # once more changes nothing

    @rule(who=WORKERS, point=CRASHES, keep=AMOUNTS)
    def kill_and_recover(self, who: int, point: str, keep: int) -> None:
        """The worker dies in a real process; the other inherits some of its pages."""
        dead, heir = self.workers[who], self.workers[1 - who]
        mine = self.some(self.pages[who], 6)
        borrowed = self.some(set(self.borrows[who]), 3)

        def work() -> None:
            {
                "section": lambda: dead.take_pages(1),
                "take": lambda: dead.take_pages(3),
                "rows": lambda: dead.take_rows(1),
                "give": lambda: dead.give_pages(mine),
                "move": lambda: dead.move_pages(mine, heir.lease.slot),
                "share": lambda: dead.share_pages(mine),
                "unshare": lambda: dead.unshare(borrowed),
            }[point.split(".")[0]]()

        run_to_crash(point, work)
        left = set(np.flatnonzero(self.table.page_owners() == dead.lease.slot).tolist())
        self.settle(who, point, mine, left)
        kept = self.some(left, keep)
        self.table.reclaim(dead.lease.slot, kept, None, heir.lease.slot)
        self.pages[who], self.rows[who] = set(), set()
        self.borrows[who], self.reserve[who] = Counter(), 0
        self.pages[1 - who] |= set(kept)
        self.workers[who] = worker(self.table, ROLES[who])

    def settle(self, who: int, point: str, mine: list[int], left: set[int]) -> None:
        """Half done is either all done or not at all; the dead's pages are as before,
        unless it gave them before it died."""
        before = self.pages[who]
        if point.startswith("give"):
            assert left in (before, before - set(mine))
        elif point.startswith(("take", "rows", "section")):
            assert before <= left
        elif left != before:  # a hand-over that got through
            assert point.startswith("move") and left == before - set(mine)
            self.pages[1 - who] |= set(mine)

    @invariant()
    def free_and_owned_are_all_and_disjoint(self) -> None:
        assert self.table.audit().violations == ()
        owners = self.table.page_owners()
        for who, one in enumerate(self.workers):
            slot = one.lease.slot
            assert set(np.flatnonzero(owners == slot).tolist()) == self.pages[who]
            row_owners = self.table.row_owners()
            assert set(np.flatnonzero(row_owners == slot).tolist()) == self.rows[who]
            labels = {r: label for r in self.rows[who] if (label := self.labels.get(r))}
            assert {r.row: r.label for r in self.table.labelled_rows(slot)} == labels
        in_use = set().union(*self.pages, *self.borrows)
        assert set(np.flatnonzero(owners).tolist()) == in_use
        usage = self.table.usage()
        assert usage.pages_free + len(in_use) == PAGES
        assert usage.borrows == sum(b.total() for b in self.borrows)
        assert usage.pages_reserved == sum(self.reserve)

    def teardown(self) -> None:
        self.table.close()


TableModel.TestCase.settings = settings(
    max_examples=500 if SOAK else 60,
    stateful_step_count=100 if SOAK else 40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestTableModel = TableModel.TestCase
