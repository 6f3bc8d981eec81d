# SPDX-License-Identifier: Apache-2.0
"""Repair, audit and count a block table. The caller holds the table's lock."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sglang.semi_pd.memory.block_table_layout import TableState, Word
from sglang.semi_pd.memory.block_table_reports import AuditReport, BlockUsage
from sglang.semi_pd.memory.id_pool import (
    FREE,
    INHERIT,
    NOTHING,
    REBUILD,
    IdPool,
    Ids,
    crash_point,
)
from sglang.semi_pd.utils import InstanceRole

# A role is stored as its place in the enum, plus one; 0 is "no worker in this slot".
ROLES = tuple(InstanceRole)
NO_ROLE = 0


def repair(state: TableState, pages: IdPool, rows: IdPool) -> None:
    """Bring a table back in order after a process died inside an operation.

    The half-done operation is finished or undone, then every cache is rebuilt from
    the owner arrays. Dying in here is fine: the next locker starts it again.
    """
    pages.apply_journal()
    rows.apply_journal()
    if state.words[Word.JOURNAL_OP] == INHERIT:
        finish_inheriting_borrows(state)
    crash_point("repair.journal")
    state.words[Word.JOURNAL_OP] = REBUILD
    _recount_borrows(state)
    crash_point("repair.borrows")
    pages.rebuild()
    rows.rebuild()
    state.words[Word.RESERVE_TOTAL] = sum(state.slot_reserve)
    state.words[Word.REPAIRS] += 1
    crash_point("repair.rebuilt")
    state.words[Word.JOURNAL_OP] = NOTHING


def finish_inheriting_borrows(state: TableState) -> None:
    """Make the sums in scratch the heir's references, the giver's none. Idempotent."""
    words, borrows = state.words, state.page_borrows
    borrows[words[Word.JOURNAL_BASE]] = borrows[FREE]
    crash_point("inherit.borrowed")
    borrows[words[Word.JOURNAL_SLOT]] = 0


def _borrow_sums(state: TableState) -> tuple[Ids, Ids]:
    """References to each page, shape (num_pages + 1,), and of each slot, (slots,)."""
    borrows = state.page_borrows
    per_slot = np.count_nonzero(borrows, axis=1)  # ten times faster than a sum
    borrowers = np.flatnonzero(per_slot)
    per_page = borrows[borrowers].sum(axis=0, dtype=np.int64)
    per_slot[borrowers] = borrows[borrowers].sum(axis=1, dtype=np.int64)
    return per_page, per_slot


def _recount_borrows(state: TableState) -> None:
    """Take every borrow count from ``page_borrows``; free what nobody holds."""
    state.page_borrows[FREE] = 0  # scratch
    per_page, per_slot = _borrow_sums(state)
    state.page_borrowed[:] = per_page
    for slot, count in enumerate(per_slot.tolist()):
        state.slot_borrows[slot] = count
    state.words[Word.BORROW_TOTAL] = int(per_page.sum())
    left = (state.page_owner == state.layout.shared_slot) & (per_page == 0)
    state.page_owner[left] = FREE


def audit(
    state: TableState, pages: IdPool, rows: IdPool, also: Sequence[str]
) -> AuditReport:
    """Check every invariant and count the audit; repairs nothing, raises nothing."""
    violations = (
        *pages.violations("pages"),
        *rows.violations("rows"),
        *_borrow_violations(state),
        *_row_violations(state),
        *_slot_violations(state),
        *also,
    )
    state.words[Word.AUDITS_RUN] += 1
    state.words[Word.AUDITS_FAILED] += bool(violations)
    pages_owned = int(np.count_nonzero(state.page_owner))
    rows_owned = int(np.count_nonzero(state.row_owner))
    return AuditReport(violations, pages.free, pages_owned, rows.free, rows_owned)


def _borrow_violations(state: TableState) -> list[str]:
    per_page, per_slot = _borrow_sums(state)
    owner, shared = state.page_owner, state.layout.shared_slot
    found = []
    if (state.page_borrowed != per_page).any():
        found.append("pages: a reference count is not the sum of the borrows")
    if state.words[Word.BORROW_TOTAL] != per_page.sum():
        found.append("pages: the total of borrows is wrong")
    if per_page[owner == FREE].any():
        found.append("pages: a free page is borrowed")
    if (per_page[owner == shared] == 0).any():
        found.append("pages: a page without owner and borrower is not free")
    for slot, count in enumerate(per_slot.tolist()):
        if count != state.slot_borrows[slot]:
            found.append(f"pages: slot {slot} borrows {count}, counted otherwise")
    return found


def _row_violations(state: TableState) -> list[str]:
    found = []
    if (state.row_committed > state.row_allocated).any():
        found.append("rows: a row has more tokens committed than allocated")
    # Who takes it and dies would have somebody else's request in it.
    if state.row_label[state.row_owner == FREE].any():
        found.append("rows: a free row has a label")
    return found


def _slot_violations(state: TableState) -> list[str]:
    found = []
    for slot in range(1, state.layout.shared_slot):
        held = state.slot_pages[slot] + state.slot_rows[slot] + state.slot_borrows[slot]
        if state.slot_role[slot] == NO_ROLE and held:
            found.append(f"slot {slot} holds {held} pages or rows and has no worker")
    if sum(state.slot_reserve) != state.words[Word.RESERVE_TOTAL]:
        found.append("pages: the total of reserves is wrong")
    return found


def usage(state: TableState, pages: IdPool, rows: IdPool) -> BlockUsage:
    """Copy the counters; costs the same for any number of pages."""
    words, lock = state.words, state.mutex.stats()
    live = [slot for slot, role in enumerate(state.slot_role) if role != NO_ROLE]

    def by_role(counts: memoryview) -> dict[str, int]:
        sums = {role.value: 0 for role in ROLES}
        for slot in live:
            sums[ROLES[state.slot_role[slot] - 1].value] += counts[slot]
        return sums

    return BlockUsage(
        page_size=state.layout.page_size,
        pages_total=pages.capacity,
        pages_free=pages.free,
        pages_peak=pages.peak,
        pages_shared=state.slot_pages[state.layout.shared_slot],
        pages_reserved=words[Word.RESERVE_TOTAL],
        pages_by_slot={slot: state.slot_pages[slot] for slot in live},
        pages_by_role=by_role(state.slot_pages),
        leased_by_role=by_role(state.slot_leased),
        cached_by_role=by_role(state.slot_cached),
        borrows=words[Word.BORROW_TOTAL],
        rows_total=rows.capacity,
        rows_free=rows.free,
        rows_peak=rows.peak,
        rows_by_slot={slot: state.slot_rows[slot] for slot in live},
        lock_waits=lock.waits,
        lock_wait_total_ns=lock.wait_total_ns,
        lock_wait_max_ns=lock.wait_max_ns,
        lock_recoveries=lock.recoveries,
        repairs=words[Word.REPAIRS],
        audits_run=words[Word.AUDITS_RUN],
        audits_failed=words[Word.AUDITS_FAILED],
    )
