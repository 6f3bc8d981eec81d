# SPDX-License-Identifier: Apache-2.0
"""What happens to the pages and rows of a worker that died or has a successor."""

from __future__ import annotations

import numpy as np
from sglang.semi_pd.memory.block_table_core import TableCore
from sglang.semi_pd.memory.block_table_reports import InheritReport, ReclaimReport
from sglang.semi_pd.memory.id_pool import IdPool, Ids, crash_point


def reclaim_slot(
    core: TableCore, slot: int, keep_pages: Ids, keep_rows: Ids, heir: int | None
) -> ReclaimReport:
    """Void the lease of ``slot``; move what is kept to ``heir`` and free the rest.

    Runs inside the section. The epoch goes first, so a zombie is fenced from the first
    instant; each later step can be repeated, so a reclaim that was itself killed half
    way is completed by calling it again.
    """
    state = core.state
    _require_keepable(core.pages, "keep_pages", slot, keep_pages, heir)
    _require_keepable(core.rows, "keep_rows", slot, keep_rows, heir)
    state.slot_epoch[slot] += 1
    crash_point("reclaim.fenced")
    borrowed = np.flatnonzero(state.page_borrows[slot])
    counts = state.page_borrows[slot, borrowed].astype(np.int64)
    orphans = core.drop_borrows(slot, borrowed, counts) if len(borrowed) else 0
    crash_point("reclaim.borrows")
    _move_kept(core.pages, slot, keep_pages, heir)
    _move_kept(core.rows, slot, keep_rows, heir)
    crash_point("reclaim.kept")
    freed, shared = core.leave_pages(slot, core.pages.owned_by(slot))
    crash_point("reclaim.pages")
    rows = core.rows.owned_by(slot)
    if len(rows):
        state.row_label[rows] = 0
        core.rows.give(slot, rows)
    crash_point("reclaim.rows")
    core.clear_slot(slot)
    return ReclaimReport(
        slot=slot,
        pages_freed=freed + orphans,
        pages_kept=len(keep_pages),
        pages_shared=shared,
        rows_freed=len(rows),
        rows_kept=len(keep_rows),
        borrows_dropped=int(counts.sum()),
    )


def inherit_slot(core: TableCore, slot: int, heir: int) -> InheritReport:
    """Void the lease of ``slot`` and make ``heir`` own, borrow and reserve what it did.

    Runs inside the section. As in ``reclaim_slot``, each step can be repeated.
    """
    state = core.state
    core.require_room_for_borrows(slot, heir)
    state.slot_epoch[slot] += 1
    crash_point("inherit.fenced")
    borrows = core.move_borrows(slot, heir)
    crash_point("inherit.borrows")
    pages, rows = core.pages.owned_by(slot), core.rows.owned_by(slot)
    if len(pages):
        core.pages.move(slot, pages, heir)
    crash_point("inherit.pages")
    if len(rows):
        core.rows.move(slot, rows, heir)
    crash_point("inherit.rows")
    if state.slot_reserve[slot]:
        core.set_reserve(heir, state.slot_reserve[slot])
    core.clear_slot(slot)
    return InheritReport(pages=len(pages), rows=len(rows), borrows=borrows)


def _require_keepable(
    pool: IdPool, name: str, slot: int, ids: Ids, heir: int | None
) -> None:
    """Kept ids belong to the dead or, after an interrupted reclaim, to the heir."""
    if not len(ids):
        return
    if heir is None:
        raise ValueError(f"new_owner: needed to keep {len(ids)} {name}")
    owners = pool.owner[ids]
    wrong = ids[(owners != slot) & (owners != heir)]
    if len(wrong):
        raise ValueError(f"{name}: {wrong[:8].tolist()} are not owned by slot {slot}")


def _move_kept(pool: IdPool, slot: int, ids: Ids, heir: int | None) -> None:
    kept = ids[pool.owner[ids] == slot]
    if heir is not None and len(kept):
        pool.move(slot, kept, heir)
