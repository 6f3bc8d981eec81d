# SPDX-License-Identifier: Apache-2.0
"""The prefix cache outlives the prefill worker that keeps it.

A worker that leaves gives its successor the pages and says what is in them. Of workers
that died, what running requests had written is kept: their prompts and tokens go into
the new tree, so that they go on after computing no more than the last of them.
"""

from __future__ import annotations

import logging
from array import array
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from sglang.semi_pd.utils import InstanceRole, label_rid_hash, rid_hash
from sglang.semi_pd.workers.handover import flush, socket_of
from sglang.semi_pd.workers.prefix_tree import (
    CachedPath,
    StillLent,
    cached_pages,
    export_paths,
    import_paths,
)
from sglang.semi_pd.workers.ranks import ALONE, Ranks
from sglang.semi_pd.workers.slots import pages_of
from sglang.semi_pd.workers.succession_messages import Heritage, Recover, Resume
from sglang.semi_pd.workers.worker_spec import give_back_address
from sglang.srt.managers.io_struct import sock_send

if TYPE_CHECKING:
    from sglang.semi_pd.memory.block_table import BlockTable
    from sglang.semi_pd.memory.id_pool import Ids
    from sglang.semi_pd.resident.shared_pools import SharedReqToTokenPool
    from sglang.semi_pd.workers.worker_spec import WorkerSpec
    from sglang.srt.mem_cache.base_prefix_cache import BasePrefixCache

logger = logging.getLogger(__name__)


def bequeath(  # noqa: PLR0913 - one to whom, the others what
    spec: WorkerSpec,
    successor: int,
    tree: BasePrefixCache,
    table: BlockTable,
    lent: list[StillLent],
    *,
    ranks: Ranks,
) -> None:
    """Give the next prefill worker all pages, and tell it what the tree says of them.

    Every rank gives its own; the first one speaks for all.
    """
    paths = export_paths(tree) if tree.is_tree_cache() else []
    table.inherit(_slot(table), table.slot_of(InstanceRole.PREFILL, successor))
    by_rank = ranks.gathered(paths)
    if by_rank:
        socket = socket_of(give_back_address(spec.run_directory, successor))
        sock_send(socket, Heritage(by_rank, lent))
        flush(socket)


def keep_paths(
    tree: BasePrefixCache, paths: Iterable[CachedPath], pages: Ids, table: BlockTable
) -> None:
    """Put sequences into the tree; free those of ``pages`` that it has no use for.

    Args:
        paths: in pages of this worker.
        pages: int64, shape (n,); some may be others' and are left alone.
    """
    import_paths(tree, paths)
    is_useless = np.zeros(table.layout.num_pages + 1, bool)
    is_useless[pages] = True
    is_useless[cached_pages(tree)] = False
    is_useless &= table.page_owners() == _slot(table)
    table.give_pages(np.flatnonzero(is_useless))


def inherit(
    message: Heritage, tree: BasePrefixCache, table: BlockTable, rank: int
) -> None:
    """Have the predecessor's prefix cache, beside what came in meanwhile."""
    paths = message.paths_by_rank[rank]
    keep_paths(tree, paths, _pages(paths, table), table)


def recover(
    message: Recover,
    table: BlockTable,
    tree: BasePrefixCache,
    rows: SharedReqToTokenPool,
    *,
    ranks: Ranks = ALONE,
) -> None:
    """Keep the KV of running requests of dead workers; free all else they had.

    They may have died when one rank had handed a request over and another had not: only
    what every rank has is kept, or their prefix caches would differ.
    """
    dead = table.slots_of(message.generations)
    found = (
        _paths_of(message.running, dead, table, rows) if tree.is_tree_cache() else []
    )
    owners = table.page_owners()

    def is_there(path: CachedPath | None) -> bool:
        """What nobody of them owns may be free, or another's by now."""
        return (
            path is not None
            and np.isin(owners[_pages([path], table)], dead).all().item()
        )

    everywhere = ranks.least([int(is_there(path)) for path in found])
    paths = [
        path for path, kept in zip(found, everywhere, strict=True) if path and kept
    ]
    pages = _pages(paths, table)
    for slot in dead:
        keep = pages[owners[pages] == slot]
        report = table.reclaim(slot, keep_pages=keep, new_owner=_slot(table))
        logger.info("Recovered from a dead worker: %s", report)
    if paths:
        keep_paths(tree, paths, pages, table)


def _paths_of(
    running: list[Resume],
    slots: list[int],
    table: BlockTable,
    rows: SharedReqToTokenPool,
) -> list[CachedPath | None]:
    """What the rows of dead workers hold of each request that goes on, if any.

    A request has one, whichever generation died with it: no pair computes anything
    before it has freed what older ones had. An id with two was used again.
    """
    labelled = [found for slot in slots for found in table.labelled_rows(slot)]
    times = Counter(label_rid_hash(one.label) for one in labelled)
    row_of = {
        rid: one.row for one in labelled if times[rid := label_rid_hash(one.label)] == 1
    }
    known = [(row_of.get(rid_hash(one.request.rid)), one) for one in running]
    return [
        _path(one, row, rows) if row is not None and one.output_ids else None
        for row, one in known
    ]


def _pages(paths: Iterable[CachedPath], table: BlockTable) -> Ids:
    """The pages that paths lie in, ascending."""
    slots = [path.slots for path in paths]
    together = np.concatenate(slots) if slots else np.empty(0, np.int64)
    return pages_of(torch.from_numpy(together), table.layout.page_size)


def _slot(table: BlockTable) -> int:
    assert table.lease is not None, "a worker has a lease"
    return table.lease.slot


def _path(resume: Resume, row: int, rows: SharedReqToTokenPool) -> CachedPath:
    """What a request's row holds of the tokens that its client has.

    The client has the last of them, so the forward that wrote the KV of all before it
    has finished.
    """
    tokens = array("q", [*resume.request.input_ids, *resume.output_ids][:-1])
    slots = rows.req_to_token[row, : len(tokens)].cpu().numpy().astype(np.int64)
    return CachedPath(
        token_ids=tokens,
        slots=slots,
        extra_key=resume.request.extra_key,
        priority=0,
    )
