# SPDX-License-Identifier: Apache-2.0
"""Blocks by request and layer: a block table and a request index kept in step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from sglang.semi_pd.memory.block_table import BlockTable, BlockUsage, WorkerLease
from sglang.semi_pd.memory.id_pool import FREE, Ids, crash_point
from sglang.semi_pd.memory.request_index import ALL_LAYERS, NO_ROW, RequestIndex
from sglang.semi_pd.utils import InstanceRole


class RequestBlocks:
    """Allocates, finds and frees the blocks of requests, atomically for all processes.

    Blocks belong to a request, not to a process: any attached process may free them,
    and they outlive the one that asked for them. ``InstanceRole`` names for whom a
    block was taken; each role is one worker of the table.

    Lock order: the index's mutex, then (inside ``BlockTable``) the table's.
    """

    def __init__(
        self, table: BlockTable, index: RequestIndex, leases: tuple[WorkerLease, ...]
    ) -> None:
        self.table, self.index, self.leases = table, index, leases
        self._by_role = {lease.role: table.bound_to(lease) for lease in leases}

    @classmethod
    def create(cls, *, num_blocks: int, page_size: int) -> RequestBlocks:
        """Make a table and an index in which every block is free."""
        table = BlockTable.create(
            num_pages=num_blocks, num_rows=num_blocks, page_size=page_size
        )
        leases = tuple(table.register_worker(role, 0) for role in InstanceRole)
        return cls(table, RequestIndex.create(num_blocks), leases)

    def allocate(
        self, request_id: bytes, layer: int, count: int, role: InstanceRole
    ) -> Ids | None:
        """Append ``count`` blocks to a layer: their ids in order, None if too few."""
        index, table = self.index, self._by_role[role]
        with self._section():
            row = index.find(request_id)
            index.begin_adding()
            blocks = table.take_pages(count)
            crash_point("allocate.taken")
            if blocks is None:
                index.finish()
                return None
            if row == NO_ROW:
                row = self._new_row(table, request_id)
            crash_point("allocate.named")
            index.add(row, layer, blocks)
            crash_point("allocate.tagged")
            index.finish(added=len(blocks))
            return blocks

    def blocks(self, request_id: bytes, layer: int) -> Ids | None:
        """Blocks of a layer in order; None for a request that has none at all."""
        with self._section():
            row = self.index.find(request_id)
            return None if row == NO_ROW else self.index.blocks(row, layer)

    def free(self, request_id: bytes, layer: int = ALL_LAYERS) -> int | None:
        """Free a layer (or all): the number of blocks; None for an unknown request."""
        index = self.index
        with self._section():
            row = index.find(request_id)
            if row == NO_ROW:
                return None
            blocks = index.blocks(row, layer)
            index.begin_removing(row, layer)
            crash_point("free.begun")
            index.clear(blocks)
            crash_point("free.cleared")
            self._give(blocks)
            crash_point("free.given")
            if not len(index.blocks(row, ALL_LAYERS)):
                self._end_rows(np.array([row]))
            index.finish()
            return len(blocks)

    def usage(self) -> tuple[BlockUsage, int]:
        """Counters of the table, and the number of requests that have blocks."""
        with self._section():
            usage = self.table.usage()
        return usage, usage.rows_total - usage.rows_free

    def close(self) -> None:
        """Unmap; the blocks stay with their requests."""
        self.index.close()
        self.table.close()

    def _new_row(self, table: BlockTable, request_id: bytes) -> int:
        """A row for a new request; there is one per block, so one is always free."""
        rows = table.take_rows(1)
        if rows is None:
            raise RuntimeError("more requests than blocks")
        self.index.name_row(rows[0], request_id)
        return rows[0]

    def _give(self, blocks: Ids) -> None:
        """Give blocks back through the role each was taken for."""
        owners = self.table.page_owners()[blocks]
        for lease in self.leases:
            mine = blocks[owners == lease.slot]
            if len(mine):
                self._by_role[lease.role].give_pages(mine)

    def _end_rows(self, rows: Ids) -> None:
        """Forget requests that have no blocks."""
        self.index.forget_rows(rows)
        owners = self.table.row_owners()[rows]
        for lease in self.leases:
            mine = rows[owners == lease.slot]
            if len(mine):
                self._by_role[lease.role].give_rows(mine)

    @contextmanager
    def _section(self) -> Iterator[None]:
        """Hold the index; repair it first, or afterwards if an exception broke in."""
        mutex = self.index.mutex
        owner_died = mutex.timedlock()
        try:
            if owner_died or self.index.interrupted:
                self._repair()
            yield
        except BaseException:
            if self.index.interrupted:
                self._repair()
            raise
        finally:
            mutex.unlock()

    def _repair(self) -> None:
        """Settle the index, then free what is owned but belongs to no request."""
        self.index.settle()
        crash_point("settle.index")
        self._give(self.index.untagged(self.table.page_owners() != FREE))
        crash_point("settle.given")
        rows = np.arange(1, self.table.layout.num_rows + 1)
        self._end_rows(np.setdiff1d(rows, self.index.rows()))
        self.index.finish()
