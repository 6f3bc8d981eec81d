# SPDX-License-Identifier: Apache-2.0
"""A mapped block table as its supervisor sees it: workers, reserves, audit, usage."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sglang.semi_pd.memory import block_table_checks as checks
from sglang.semi_pd.memory.block_table_core import TableCore
from sglang.semi_pd.memory.block_table_layout import BlockTableLayout, TableState, Word
from sglang.semi_pd.memory.block_table_reclaim import reclaim_slot
from sglang.semi_pd.memory.block_table_reports import (
    AuditReport,
    BlockUsage,
    ReclaimReport,
    RowState,
    WorkerLease,
)
from sglang.semi_pd.memory.id_pool import FREE, Ids
from sglang.semi_pd.memory.robust_mutex import DEFAULT_TIMEOUT_S
from sglang.semi_pd.utils import InstanceRole
from typing_extensions import Self

IdList = Sequence[int] | npt.NDArray[np.int64]

SHOWN = 8  # ids named in an error


class TableHandle:
    """One process's view of a block table; it speaks for the worker it is bound to."""

    def __init__(self, core: TableCore, lease: WorkerLease | None = None) -> None:
        self._core = core
        self._lease = lease

    @classmethod
    def create(
        cls,
        *,
        num_pages: int,
        num_rows: int,
        page_size: int,
        num_workers: int = 16,
        lock_timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Self:
        """Make a table in which everything is free; ``page_size`` in tokens.

        Raises:
            ValueError: a size is out of range.
            OSError: no memory for it.
        """
        layout = BlockTableLayout(
            num_pages=operator.index(num_pages),
            num_rows=operator.index(num_rows),
            page_size=operator.index(page_size),
            num_workers=operator.index(num_workers),
        )
        core = TableCore(TableState.create(layout), lock_timeout_s)
        core.pages.rebuild()
        core.rows.rebuild()
        core.state.publish()
        return cls(core)

    @classmethod
    def attach(
        cls,
        fd: int,
        *,
        lease: WorkerLease | None = None,
        lock_timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Self:
        """Map the table behind ``fd``, which stays the caller's.

        Raises:
            LayoutMismatchError: not a table, or one this code cannot read.
        """
        return cls(TableCore(TableState.attach(fd), lock_timeout_s), lease)

    @property
    def fd(self) -> int:
        """File descriptor to hand to other processes."""
        return self._core.state.memory.fd

    @property
    def token(self) -> int:
        """Random number that tells this table from any other."""
        return int(self._core.words[Word.TOKEN])

    @property
    def lease(self) -> WorkerLease | None:
        """The worker this object speaks for."""
        return self._lease

    @property
    def layout(self) -> BlockTableLayout:
        """The sizes of the table."""
        return self._core.state.layout

    def close(self) -> None:
        """Unmap; pages and rows stay with their owners until given or reclaimed."""
        self._core.state.mutex.close()
        self._core.state.memory.close()

    def register_worker(self, role: InstanceRole, generation: int) -> WorkerLease:
        """Claim a slot for a worker; this object speaks for it if for none so far.

        Raises:
            ValueError: every slot is taken.
        """
        with self._core:
            lease = self._core.claim_slot(InstanceRole(role), generation)
        if self._lease is None:
            self._lease = lease
        return lease

    def slot_of(self, role: InstanceRole) -> int:
        """The slot of the newest worker of ``role``.

        Raises:
            ValueError: no worker of that role is registered.
        """
        state = self._core.state
        wanted = checks.ROLES.index(InstanceRole(role)) + 1
        slots = [
            slot
            for slot in range(1, state.layout.shared_slot)
            if state.slot_role[slot] == wanted
        ]
        if not slots:
            raise ValueError(f"role: no {role.value} worker is registered")
        return max(slots, key=lambda slot: state.slot_generation[slot])

    def bound_to(self, lease: WorkerLease) -> Self:
        """The same mapping, speaking for another worker."""
        return type(self)(self._core, lease)

    def retire_worker(self, slot: int) -> None:
        """End a worker in good order: it owns nothing any more.

        Raises:
            ValueError: no such worker, or it still holds pages or rows.
        """
        core, state = self._core, self._core.state
        with core:
            core.live_slot("slot", slot)
            held = (state.slot_pages[slot], state.slot_borrows[slot])
            if any(held) or state.slot_rows[slot]:
                raise ValueError(
                    f"slot: {slot} still owns {held[0]} pages and "
                    f"{state.slot_rows[slot]} rows, and borrows {held[1]} pages"
                )
            core.clear_slot(slot)

    def set_reserve(self, slot: int, n_pages: int) -> None:
        """Keep the last ``n_pages`` free pages for ``slot`` (0: no reserve).

        Other workers are refused what would leave fewer free than that.

        Raises:
            ValueError: no such worker, or more than there are pages.
        """
        core = self._core
        if not 0 <= n_pages <= core.pages.capacity:
            raise ValueError(f"n_pages: {n_pages} not within 0..{core.pages.capacity}")
        with core:
            core.set_reserve(core.live_slot("slot", slot), n_pages)

    def reclaim(
        self,
        slot: int,
        keep_pages: IdList | None = None,
        keep_rows: IdList | None = None,
        new_owner: int | None = None,
    ) -> ReclaimReport:
        """Declare the worker in ``slot`` dead and take back all it had.

        Kept pages and rows move to ``new_owner``; the rest becomes free, or stays with
        its borrowers. Needs no lease: a supervisor calls it. May be called again.

        Raises:
            ValueError: unknown slot or heir, or kept ids that were not the worker's.
        """
        core = self._core
        pages = checked_ids("keep_pages", keep_pages, core.pages.capacity)
        rows = checked_ids("keep_rows", keep_rows, core.rows.capacity)
        if not 1 <= slot < self.layout.shared_slot:
            raise ValueError(f"slot: {slot} is not a worker slot")
        if new_owner == slot:
            raise ValueError(f"new_owner: {slot} is the slot to reclaim")
        with core:
            if new_owner is not None:
                core.live_slot("new_owner", new_owner)
            return reclaim_slot(core, slot, pages, rows, new_owner)

    def audit(self) -> AuditReport:
        """Check every page, row and counter; it lists violations and mends nothing."""
        core = self._core
        with core:
            return checks.audit(core.state, core.pages, core.rows)

    def usage(self) -> BlockUsage:
        """One consistent copy of all counters; O(workers), not O(pages)."""
        core = self._core
        with core:
            return checks.usage(core.state, core.pages, core.rows)

    def row_state(self, row: int) -> RowState:
        """Owner, generation and lengths of one row, read without the lock.

        Raises:
            ValueError: no such row.
        """
        state = self._core.state
        if not 1 <= row <= state.layout.num_rows:
            raise ValueError(f"row: {row} is not within 1..{state.layout.num_rows}")
        return RowState(
            owner=int(state.row_owner[row]),
            generation=int(state.row_generation[row]),
            committed=int(state.row_committed[row]),
            allocated=int(state.row_allocated[row]),
        )

    def page_owners(self) -> npt.NDArray[np.uint16]:
        """Copy of the owner slot of each page, shape (num_pages + 1,); 0 is free."""
        with self._core:
            return np.array(self._core.state.page_owner, dtype=np.uint16)

    def row_owners(self) -> npt.NDArray[np.uint16]:
        """Copy of the owner slot of each row, shape (num_rows + 1,); 0 is free."""
        with self._core:
            return np.array(self._core.state.row_owner, dtype=np.uint16)

    def refcounts(self, ids: IdList) -> Ids:
        """Holders of each page, shape (len(ids),): its owner and all references.

        Raises:
            ValueError: an id is out of range or not an integer.
        """
        state = self._core.state
        checked_ids("refcounts", ids, state.layout.num_pages)
        pages = np.asarray(ids, dtype=np.int64)
        with self._core:
            owners = state.page_owner[pages]
            owned = (owners != FREE) & (owners != state.layout.shared_slot)
            return np.asarray(owned + state.page_borrowed[pages], dtype=np.int64)


def checked_ids(name: str, ids: IdList | None, capacity: int) -> Ids:
    """``ids`` as sorted int64, shape (n,), checked to exist and to be different.

    Raises:
        ValueError: naming the argument and the first wrong ids.
    """
    given = np.asarray([] if ids is None else ids)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise ValueError(f"{name}: need a flat list of integers, got {given!r}")
    found = given.astype(np.int64)
    if not len(found):
        return found
    found.sort()
    if found[0] < 1 or found[-1] > capacity:
        wrong = found[(found < 1) | (found > capacity)]
        raise ValueError(
            f"{name}: {wrong[:SHOWN].tolist()} are not within 1..{capacity}"
        )
    twice = found[1:] == found[:-1]
    if np.count_nonzero(twice):  # a third of the cost of twice.any()
        raise ValueError(f"{name}: {found[1:][twice][:SHOWN].tolist()} given twice")
    return found
