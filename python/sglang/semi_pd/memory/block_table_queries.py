# SPDX-License-Identifier: Apache-2.0
"""What anybody who has mapped a block table may ask it; nothing here changes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sglang.semi_pd.memory import block_table_checks as checks
from sglang.semi_pd.memory.block_table_core import TableCore
from sglang.semi_pd.memory.block_table_reports import (
    Answer,
    AuditReport,
    BlockUsage,
    LabelledRow,
    RowState,
)
from sglang.semi_pd.memory.id_pool import FREE, Ids

IdList = Sequence[int] | npt.NDArray[np.int64]

SHOWN = 8  # ids named in an error


class TableQueries:
    """The reading half of ``TableHandle``."""

    _core: TableCore

    def audit(self, also: Sequence[str] = ()) -> AuditReport:
        """Check every page, row and counter; it lists violations and mends nothing.

        Args:
            also: violations that the caller found, to be reported and counted too.
        """
        core = self._core
        with core:
            return checks.audit(core.state, core.pages, core.rows, also)

    def usage(self) -> BlockUsage:
        """One consistent copy of all counters; O(workers), not O(pages)."""
        core = self._core
        with core:
            return checks.usage(core.state, core.pages, core.rows)

    @property
    def pages_free(self) -> int:
        """Pages that nobody has; read without the lock, so it may just have changed."""
        return self._core.pages.free

    def reserve_of(self, slot: int) -> int:
        """Pages kept free for the worker in ``slot``; read without the lock."""
        return int(self._core.state.slot_reserve[slot])

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

    def labelled_rows(self, slot: int) -> list[LabelledRow]:
        """The rows that ``slot`` owns and that were labelled when handed over.

        Raises:
            ValueError: no such slot.
        """
        state = self._core.state
        if not 1 <= slot <= state.layout.num_workers:
            raise ValueError(f"slot: {slot} is not a worker slot")
        with self._core:
            rows = np.flatnonzero((state.row_owner == slot) & (state.row_label != 0))
            return [LabelledRow(int(row), int(state.row_label[row])) for row in rows]

    def answer_of(self, slot: int) -> Answer:
        """What the worker in ``slot`` last said with ``publish_answer``; no lock."""
        state = self._core.state
        return Answer(state.slot_answered[slot], bool(state.slot_busy[slot]))


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
