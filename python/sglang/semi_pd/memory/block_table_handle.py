# SPDX-License-Identifier: Apache-2.0
"""A mapped block table as its supervisor sees it: workers, reserves, audit, usage."""

from __future__ import annotations

import operator
from collections.abc import Collection

from sglang.semi_pd.memory import block_table_checks as checks
from sglang.semi_pd.memory.block_table_core import TableCore
from sglang.semi_pd.memory.block_table_layout import BlockTableLayout, TableState, Word
from sglang.semi_pd.memory.block_table_queries import (
    IdList,
    TableQueries,
    checked_ids,
)
from sglang.semi_pd.memory.block_table_reclaim import inherit_slot, reclaim_slot
from sglang.semi_pd.memory.block_table_reports import (
    InheritReport,
    ReclaimReport,
    WorkerLease,
)
from sglang.semi_pd.memory.robust_mutex import DEFAULT_TIMEOUT_S
from sglang.semi_pd.utils import InstanceRole
from typing_extensions import Self


class TableHandle(TableQueries):
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

    def slot_of(self, role: InstanceRole, generation: int | None = None) -> int:
        """The slot of the newest worker of ``role``, or of one generation's.

        Raises:
            ValueError: no such worker is registered.
        """
        state = self._core.state
        wanted = checks.ROLES.index(InstanceRole(role)) + 1
        slots = [
            slot
            for slot in range(1, state.layout.shared_slot)
            if state.slot_role[slot] == wanted
            and generation in (None, state.slot_generation[slot])
        ]
        if not slots:
            which = "" if generation is None else f" of generation {generation}"
            raise ValueError(f"role: no {role.value} worker{which} is registered")
        return max(slots, key=lambda slot: state.slot_generation[slot])

    def slots_of(self, generations: Collection[int]) -> list[int]:
        """The slots of all workers of these generations."""
        state = self._core.state
        return [
            slot
            for slot in range(1, state.layout.shared_slot)
            if state.slot_role[slot] and state.slot_generation[slot] in generations
        ]

    def bound_to(self, lease: WorkerLease) -> Self:
        """The same mapping, speaking for another worker."""
        return type(self)(self._core, lease)

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

    def inherit(self, from_slot: int, to_slot: int) -> InheritReport:
        """Give all that one worker owns, borrows and has reserved to its successor.

        One section; the predecessor's lease is void from its first instant. Needs no
        lease: a supervisor calls it. If its caller is killed half way, calling it again
        completes it.

        Raises:
            ValueError: unknown slots, the same slot twice, no worker in ``to_slot``, or
                a page would get more than 65,535 references from it.
        """
        core = self._core
        if not 1 <= from_slot < self.layout.shared_slot:
            raise ValueError(f"from_slot: {from_slot} is not a worker slot")
        if from_slot == to_slot:
            raise ValueError(f"to_slot: {to_slot} cannot inherit from itself")
        with core:
            return inherit_slot(core, from_slot, core.live_slot("to_slot", to_slot))
