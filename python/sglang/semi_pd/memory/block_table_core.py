# SPDX-License-Identifier: Apache-2.0
"""The locked section that every operation on a block table runs in."""

from __future__ import annotations

from types import TracebackType

import numpy as np
from sglang.semi_pd.memory.block_table_checks import (
    NO_ROLE,
    ROLES,
    finish_inheriting_borrows,
    repair,
)
from sglang.semi_pd.memory.block_table_layout import TableState, Word
from sglang.semi_pd.memory.block_table_reports import FencedError, WorkerLease
from sglang.semi_pd.memory.id_pool import (
    FREE,
    INHERIT,
    NOTHING,
    UPDATE,
    IdPool,
    Ids,
    Journal,
    crash_point,
)
from sglang.semi_pd.utils import InstanceRole

MAX_BORROWS = 0xFFFF


class TableCore:
    """One mapped table with its two pools; ``with core:`` is the atomic section.

    Entering takes the lock and repairs what a dead holder left half done. Leaving by an
    exception in the middle of a change (Ctrl-C, say) repairs too.
    """

    def __init__(self, state: TableState, lock_timeout_s: float) -> None:
        self.state = state
        self.words = state.words
        self.journal = Journal(state.words)
        self.pages = IdPool(
            state.words,
            Word.PAGES_FREE,
            state.page_owner,
            state.page_stack,
            state.slot_pages,
        )
        self.rows = IdPool(
            state.words,
            Word.ROWS_FREE,
            state.row_owner,
            state.row_stack,
            state.slot_rows,
        )
        self._mutex = state.mutex
        self._timeout_s = lock_timeout_s

    def __enter__(self) -> None:
        owner_died = self._mutex.timedlock(self._timeout_s)
        if owner_died or self.words[Word.JOURNAL_OP] != NOTHING:
            try:
                repair(self.state, self.pages, self.rows)
            except BaseException:
                self._mutex.unlock()
                raise
        crash_point("section.entered")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is not None and self.words[Word.JOURNAL_OP] != NOTHING:
                repair(self.state, self.pages, self.rows)
        finally:
            self._mutex.unlock()

    def begin_update(self) -> None:
        """Mark a change that the owner arrays do not show; a death rebuilds caches."""
        self.journal.begin(UPDATE, 0, 0, 0, 0)

    def fenced_slot(self, lease: WorkerLease | None) -> int:
        """The slot of ``lease``, if it may still change the table.

        Raises:
            FencedError: there is no lease, or its epoch is over.
        """
        if lease is None:
            raise FencedError(
                "this block table has no worker", mend="call register_worker or bind"
            )
        if self.state.slot_epoch[lease.slot] != lease.epoch:
            raise FencedError(
                f"{lease.role.value} worker in slot {lease.slot} was declared dead",
                why=f"its epoch {lease.epoch} is over",
                mend="end this process; its successor has the pages",
            )
        return lease.slot

    def live_slot(self, name: str, slot: int) -> int:
        """``slot`` if a worker is registered there, else ValueError naming ``name``."""
        state = self.state
        if not 1 <= slot <= state.layout.num_workers:
            raise ValueError(f"{name}: {slot} is not a worker slot")
        if state.slot_role[slot] == NO_ROLE:
            raise ValueError(f"{name}: no worker in slot {slot}")
        return slot

    def claim_slot(self, role: InstanceRole, generation: int) -> WorkerLease:
        """Give ``role`` the first slot that has no worker and owns nothing.

        Raises:
            ValueError: every slot is in use.
        """
        state = self.state
        for slot in range(1, state.layout.shared_slot):
            held = state.slot_pages[slot] + state.slot_rows[slot]
            if state.slot_role[slot] == NO_ROLE and not held + state.slot_borrows[slot]:
                state.slot_epoch[slot] += 1
                state.slot_generation[slot] = generation
                crash_point("register.epoch")
                state.slot_role[slot] = ROLES.index(role) + 1
                return WorkerLease(slot, state.slot_epoch[slot], role, generation)
        raise ValueError(f"role: no worker slot is free for another {role.value}")

    def clear_slot(self, slot: int) -> None:
        """End the worker in ``slot``: its lease is void, the slot may be used again."""
        state = self.state
        state.slot_epoch[slot] += 1
        self.set_reserve(slot, 0)
        state.slot_leased[slot] = state.slot_cached[slot] = 0
        state.slot_answered[slot] = state.slot_busy[slot] = 0
        state.slot_role[slot] = NO_ROLE

    def set_reserve(self, slot: int, num_pages: int) -> None:
        """Keep ``num_pages`` free pages for ``slot`` alone."""
        self.begin_update()
        self.words[Word.RESERVE_TOTAL] += num_pages - self.state.slot_reserve[slot]
        crash_point("reserve.counted")
        self.state.slot_reserve[slot] = num_pages
        self.journal.end()

    def available(self, slot: int) -> int:
        """Free pages that ``slot`` may take: all but what others have reserved."""
        others = self.words[Word.RESERVE_TOTAL] - self.state.slot_reserve[slot]
        return max(0, int(self.pages.free - others))

    def leave_pages(self, slot: int, ids: Ids) -> tuple[int, int]:
        """Take ``ids`` from their owner: (freed, left to their borrowers)."""
        lent = ids[:0]
        if self.words[Word.BORROW_TOTAL]:
            borrowed = self.state.page_borrowed[ids] > 0
            lent, ids = ids[borrowed], ids[~borrowed]
            if len(lent):
                self.pages.move(slot, lent, self.state.layout.shared_slot)
        if len(ids):
            self.pages.give(slot, ids)
        return len(ids), len(lent)

    def add_borrows(self, slot: int, ids: Ids) -> None:
        """Count one more reference of ``slot`` to each of ``ids``."""
        self.begin_update()
        crash_point("share.begun")
        self.state.page_borrows[slot, ids] += 1
        crash_point("share.borrowed")
        self.state.page_borrowed[ids] += 1
        self.state.slot_borrows[slot] += len(ids)
        self.words[Word.BORROW_TOTAL] += len(ids)
        self.journal.end()

    def drop_borrows(self, slot: int, ids: Ids, counts: Ids) -> int:
        """Drop ``counts`` references of ``slot``; free pages nobody holds any more.

        Returns how many pages became free.
        """
        state, total = self.state, int(counts.sum())
        self.begin_update()
        crash_point("unshare.begun")
        state.page_borrows[slot, ids] -= counts.astype(np.uint16)
        crash_point("unshare.dropped")
        state.page_borrowed[ids] -= counts.astype(np.uint16)
        state.slot_borrows[slot] -= total
        self.words[Word.BORROW_TOTAL] -= total
        shared = state.layout.shared_slot
        left = (state.page_borrowed[ids] == 0) & (state.page_owner[ids] == shared)
        crash_point("unshare.counted")
        self.journal.end()
        freed = ids[left]
        if len(freed):
            self.pages.give(shared, freed)
        return len(freed)

    def require_room_for_borrows(self, slot: int, heir: int) -> None:
        """Raise ValueError if ``heir`` cannot count the references of ``slot`` too."""
        borrows = self.state.page_borrows
        both = borrows[slot].astype(np.int64) + borrows[heir]
        if (both > MAX_BORROWS).any():
            raise ValueError(f"to_slot: a page has more than {MAX_BORROWS} references")

    def move_borrows(self, slot: int, heir: int) -> int:
        """Make all references of ``slot`` those of ``heir``; returns how many."""
        state = self.state
        moved = state.slot_borrows[slot]
        if not moved:
            return 0
        self.begin_update()
        state.page_borrows[FREE] = state.page_borrows[slot] + state.page_borrows[heir]
        crash_point("inherit.summed")
        self.journal.begin(INHERIT, 0, slot, heir, 0)
        crash_point("inherit.begun")
        finish_inheriting_borrows(state)
        state.slot_borrows[slot] -= moved
        state.slot_borrows[heir] += moved
        crash_point("inherit.counted")
        state.page_borrows[FREE] = 0
        self.journal.end()
        return int(moved)
