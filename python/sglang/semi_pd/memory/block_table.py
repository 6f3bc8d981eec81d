# SPDX-License-Identifier: Apache-2.0
"""The authority over every KV page and every request row of one rank.

Each method is one atomic section under a lock that its holder's death releases: query,
take and update happen together or not at all, whichever process calls.
"""

from __future__ import annotations

import numpy as np
from sglang.semi_pd.memory.block_table_core import MAX_BORROWS
from sglang.semi_pd.memory.block_table_handle import TableHandle
from sglang.semi_pd.memory.block_table_layout import LayoutMismatchError
from sglang.semi_pd.memory.block_table_queries import SHOWN, IdList, checked_ids
from sglang.semi_pd.memory.block_table_reports import (
    Answer,
    AuditReport,
    BlockUsage,
    FencedError,
    InheritReport,
    LabelledRow,
    ReclaimReport,
    RowState,
    WorkerLease,
)
from sglang.semi_pd.memory.id_pool import FREE, IdPool, Ids, crash_point

__all__ = [
    "Answer",
    "AuditReport",
    "BlockTable",
    "BlockUsage",
    "FencedError",
    "InheritReport",
    "LabelledRow",
    "LayoutMismatchError",
    "ReclaimReport",
    "RowState",
    "WorkerLease",
]


class BlockTable(TableHandle):
    """The table as a worker sees it: pages and rows, taken, given and handed over.

    Pages are 1..num_pages and rows 1..num_rows; page 0 and row 0 are padding and never
    handed out. Every change needs a live lease: after the worker was reclaimed it gets
    ``FencedError``. Waiting for the lock ends with ``LockTimeoutError``.
    """

    # KV pages

    def take_pages(self, n: int) -> Ids | None:
        """``n`` pages, shape (n,), now owned by this worker; None if not all are there.

        Raises:
            ValueError: ``n`` is negative.
        """
        return self.take_up_to(n, n)

    def take_up_to(self, n: int, min_n: int) -> Ids | None:
        """As many pages as there are, at most ``n``; None if fewer than ``min_n``.

        Raises:
            ValueError: not 0 <= min_n <= n.
        """
        if not 0 <= min_n <= n:
            raise ValueError(f"n, min_n: need 0 <= min_n <= n, got {n}, {min_n}")
        core = self._core
        with core:
            slot = core.fenced_slot(self._lease)
            count = min(n, core.available(slot))
            return core.pages.take(slot, count) if count >= min_n else None

    def give_pages(self, ids: IdList) -> None:
        """Give up pages this worker owns; those that others borrow stay with them.

        Raises:
            ValueError: an id is out of range, twice, free, or another worker's. No
                page has changed hands then.
        """
        core = self._core
        pages = checked_ids("give_pages", ids, core.pages.capacity)
        with core:
            slot = self._owner("give_pages", core.pages, pages)
            core.leave_pages(slot, pages)

    def recycle_pages(self, ids: IdList) -> Ids:
        """Take freed pages of this worker for itself again; those it may have.

        Pages that others borrow are left to them, as ``give_pages`` would; the rest,
        ascending, stay owned and may be written at once.

        Raises:
            ValueError: as for ``give_pages``.
        """
        core = self._core
        pages = checked_ids("recycle_pages", ids, core.pages.capacity)
        with core:
            slot = self._owner("recycle_pages", core.pages, pages)
            lent = pages[core.state.page_borrowed[pages] > 0]
            if len(lent):
                core.leave_pages(slot, lent)
                pages = pages[core.state.page_owner[pages] == slot]
            return pages

    def move_pages(self, ids: IdList, to_slot: int) -> None:
        """Hand pages this worker owns to another; a death half way undoes it.

        Raises:
            ValueError: as for ``give_pages``, or no worker in ``to_slot``.
        """
        core = self._core
        pages = checked_ids("move_pages", ids, core.pages.capacity)
        with core:
            slot = self._owner("move_pages", core.pages, pages)
            core.pages.move(slot, pages, core.live_slot("to_slot", to_slot))

    def share_pages(self, ids: IdList, to_slot: int | None = None) -> None:
        """Add one reference to each page for ``to_slot`` (default: this worker).

        A page is free only when its owner and all references have let go.

        Raises:
            ValueError: an id is out of range, twice or free, or has 65,535 references.
        """
        core = self._core
        pages = checked_ids("share_pages", ids, core.pages.capacity)
        with core:
            slot = core.fenced_slot(self._lease)
            if to_slot is not None:
                slot = core.live_slot("to_slot", to_slot)
            free = pages[core.pages.owner[pages] == FREE]
            if len(free):
                raise ValueError(f"share_pages: {free[:SHOWN].tolist()} are free")
            if (core.state.page_borrowed[pages] == MAX_BORROWS).any():
                raise ValueError(f"share_pages: a page has {MAX_BORROWS} references")
            core.add_borrows(slot, pages)

    def unshare(self, ids: IdList) -> int:
        """Drop one of this worker's references to each page; returns pages freed.

        Raises:
            ValueError: an id is out of range, twice, or not borrowed by this worker.
        """
        core = self._core
        pages = checked_ids("unshare", ids, core.pages.capacity)
        with core:
            slot = core.fenced_slot(self._lease)
            self._require_borrowed("unshare", slot, pages)
            return core.drop_borrows(slot, pages, np.ones_like(pages))

    # Request rows

    def take_rows(self, n: int) -> list[int] | None:
        """``n`` rows, new generation, both lengths 0; None if not all are there.

        Raises:
            ValueError: ``n`` is negative.
        """
        if n < 0:
            raise ValueError(f"n: {n} is negative")
        core = self._core
        with core:
            slot = core.fenced_slot(self._lease)
            return self._new_rows(slot, n) if core.rows.free >= n else None

    def take_rows_up_to(self, n: int, *, leave: int = 0) -> list[int]:
        """As many rows as there are, at most ``n``, new as those of ``take_rows``.

        Args:
            leave: so many stay free for the other worker.
        """
        core = self._core
        with core:
            slot = core.fenced_slot(self._lease)
            count = min(n, core.rows.free - leave)
            return self._new_rows(slot, count) if count > 0 else []

    def _new_rows(self, slot: int, count: int) -> list[int]:
        state = self._core.state
        rows = self._core.rows.take(slot, count)
        state.row_generation[rows] += 1
        crash_point("rows.generation")
        state.row_committed[rows] = 0
        state.row_allocated[rows] = 0
        return list(map(int, rows))

    def give_rows(self, rows: IdList) -> None:
        """Give up rows this worker owns.

        Raises:
            ValueError: a row is out of range, twice, free, or another worker's.
        """
        core = self._core
        ids = checked_ids("give_rows", rows, core.rows.capacity)
        with core:
            slot = self._owner("give_rows", core.rows, ids)
            core.state.row_label[ids] = 0
            core.rows.give(slot, ids)

    def move_row(self, row: int, to_slot: int, label: int = 0) -> None:
        """Hand a row, with its lengths and generation, to another worker.

        Args:
            label: 64 bits by which the row is found again (``labelled_rows``), until it
                is free; 0 leaves the label as it is.

        Raises:
            ValueError: not this worker's row, or no worker in ``to_slot``.
        """
        core = self._core
        ids = checked_ids("move_row", [row], core.rows.capacity)
        with core:
            slot = self._owner("move_row", core.rows, ids)
            to_slot = core.live_slot("to_slot", to_slot)
            if label:
                core.state.row_label[row] = label
            core.rows.move(slot, ids, to_slot)

    def set_committed(self, rows: IdList, lens: IdList) -> None:
        """Publish how many tokens of each row have their KV durably written.

        Call it only after the forward that writes them has finished.

        Raises:
            ValueError: not this worker's rows, or a length not within 0..allocated.
        """
        core, state = self._core, self._core.state
        ids, lengths = self._lengths("set_committed", rows, lens)
        with core:
            self._owner("set_committed", core.rows, ids)
            if np.count_nonzero(lengths > state.row_allocated[ids]):
                raise ValueError("lens: more committed than allocated")
            state.row_committed[ids] = lengths

    def set_allocated(self, rows: IdList, lens: IdList) -> None:
        """Record for how many tokens each row has pages.

        Raises:
            ValueError: not this worker's rows, or a length below the committed one.
        """
        core, state = self._core, self._core.state
        ids, lengths = self._lengths("set_allocated", rows, lens)
        with core:
            self._owner("set_allocated", core.rows, ids)
            if (lengths < state.row_committed[ids]).any():
                raise ValueError("lens: less allocated than committed")
            state.row_allocated[ids] = lengths

    # What a worker says about itself; no lock, as nobody else writes it

    def publish_held(self, *, leased: int, cached: int) -> None:
        """Say how many of this worker's pages are ready unused, and evictable."""
        if self._lease is not None:
            state, slot = self._core.state, self._lease.slot
            state.slot_leased[slot], state.slot_cached[slot] = leased, cached

    def publish_answer(self, answer: Answer) -> None:
        """Answer a request for pages, after giving what could be given."""
        if self._lease is not None:
            state, slot = self._core.state, self._lease.slot
            state.slot_busy[slot] = answer.is_busy
            state.slot_answered[slot] = answer.sequence

    def _require_borrowed(self, what: str, slot: int, pages: Ids) -> None:
        wrong = pages[self._core.state.page_borrows[slot, pages] == 0]
        if len(wrong):
            raise ValueError(f"{what}: {wrong[:SHOWN].tolist()} not borrowed")

    def _owner(self, what: str, pool: IdPool, ids: Ids) -> int:
        """This worker's slot, having checked that it owns all of ``ids``."""
        slot = self._core.fenced_slot(self._lease)
        owners = pool.owner[ids]
        wrong = owners != slot
        if np.count_nonzero(wrong):
            named = ", ".join(
                f"{index} is free" if owner == FREE else f"{index} is slot {owner}'s"
                for index, owner in zip(
                    ids[wrong][:SHOWN].tolist(), owners[wrong].tolist(), strict=False
                )
            )
            raise ValueError(f"{what}: not owned by slot {slot}: {named}")
        return slot

    def _lengths(self, what: str, rows: IdList, lens: IdList) -> tuple[Ids, Ids]:
        """Rows and their lengths as int64, both of shape (n,), in the given order."""
        checked_ids(what, rows, self._core.rows.capacity)
        ids, lengths = np.asarray(rows, np.int64), np.asarray(lens, np.int64)
        if ids.shape != lengths.shape or (lengths < 0).any():
            raise ValueError(f"lens: need {len(ids)} lengths of 0 or more, got {lens}")
        return ids, lengths
