# SPDX-License-Identifier: Apache-2.0
"""SGLang's memory pools over memory that several processes map.

Upstream decides every shape; only the memory comes from elsewhere. A pool is asked to
create its buffers on torch's meta device, and each buffer is then replaced: in the
resident by new shared memory, in a worker by a view of what the resident made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from sglang.semi_pd.memory.memory_arena import ArenaBuilder, TensorRef, dtype_name
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool

if TYPE_CHECKING:
    from sglang.semi_pd.memory.block_table import BlockTable
    from sglang.srt.managers.schedule_batch import Req

Supply = Callable[[torch.Tensor], torch.Tensor]
"""Memory for one buffer, given its meta tensor."""

ROW_LEASE = 64
"""Most request rows leased at a time: few enough to share, enough to lock seldom."""
LEASED_PART = 8
"""Of few rows an eighth is leased: in a rotation two prefill workers need some."""
SPARE_ROWS = 1
"""Rows beyond ``--max-running-requests`` that prefill leaves alone: a request that
decode has put aside comes back into one, however many prompts wait for a row."""


class SupplyNew:
    """Resident: every buffer is new shared memory, and is remembered in order."""

    def __init__(self, builder: ArenaBuilder) -> None:
        self.refs: list[TensorRef] = []
        self._builder = builder

    def __call__(self, wanted: torch.Tensor) -> torch.Tensor:
        ref = self._builder.empty(tuple(wanted.shape), wanted.dtype)
        self.refs.append(ref)
        return self._builder.tensor(ref)


class SupplyExisting:
    """Worker: the buffers the resident made, in the same order.

    Raises (on call):
        ValueError: this process wants a buffer of another shape or type, so the two
            disagree about the model and must not share memory.
    """

    def __init__(
        self, refs: list[TensorRef], tensors: Callable[[TensorRef], torch.Tensor]
    ) -> None:
        self._refs, self._tensors = iter(refs), tensors

    def __call__(self, wanted: torch.Tensor) -> torch.Tensor:
        ref = next(self._refs, None)
        found = None if ref is None else (ref.shape, ref.dtype)
        if ref is None or found != (tuple(wanted.shape), dtype_name(wanted.dtype)):
            raise ValueError(
                f"KV buffer: this worker wants {tuple(wanted.shape)} {wanted.dtype}, "
                f"the resident has {found}"
            )
        return self._tensors(ref)


def create_buffers(create: Callable[[Any], None], pool: Any, supply: Supply) -> None:
    """Run a pool's own buffer creation, but over memory from ``supply``.

    Args:
        create: the upstream method, e.g. ``MHATokenToKVPool._create_buffers_normal``.
        pool: the pool it is called on.
    """
    device = pool.device
    pool.device = "meta"
    try:
        create(pool)
    finally:
        pool.device = device
    for name, value in vars(pool).items():
        if isinstance(value, list) and value and _all_meta(value):
            setattr(pool, name, [supply(tensor) for tensor in value])


def _all_meta(values: list[Any]) -> bool:
    return all(isinstance(v, torch.Tensor) and v.is_meta for v in values)


class SharedReqToTokenPool(ReqToTokenPool):
    """Upstream's request rows, taken from the rows all workers share.

    Rows are leased in bulk, so that a size this worker has read stays true until it
    allocates: the other worker cannot take the row in between.

    Args:
        req_to_token: slots of each row's tokens, shape (rows + 1, context), int32.
        lease: most rows to lease at a time, if no more are needed at once.
        leave: rows that stay free for the other worker.
    """

    pre_alloc_size = 0

    agree: Callable[[int], int]
    """As ``LeasedAllocator.agree``."""

    def __init__(
        self,
        req_to_token: torch.Tensor,
        table: BlockTable,
        *,
        lease: int = ROW_LEASE,
        leave: int = 0,
    ) -> None:
        self.agree = int
        self.size = req_to_token.shape[0] - 1
        self._alloc_size, self.max_context_len = req_to_token.shape
        self.device = str(req_to_token.device)
        self.req_to_token = req_to_token
        self.req_generation = torch.zeros(self._alloc_size, dtype=torch.int64)
        self.free_slots: list[int] = []
        self._table = table
        self._leave = leave
        self._lease_rows = min(lease, max(1, self.size // LEASED_PART))

    def available_size(self) -> int:
        if not self.free_slots:
            self._lease(1)
        return len(self.free_slots)

    def alloc(self, reqs: list[Req]) -> list[int] | None:
        missing = sum(r.req_pool_idx is None for r in reqs) - len(self.free_slots)
        if missing > 0:
            self._lease(missing)
        return super().alloc(reqs)

    def free(self, req: Req) -> None:
        row = req.req_pool_idx
        super().free(req)
        self.free_slots.remove(row)
        self._table.give_rows([row])

    def give_up(self, req: Req) -> int:
        """Let go of a request's row without freeing it: another worker adopts it."""
        row = req.req_pool_idx
        assert row is not None, "only a request that has a row can be handed over"
        req.req_pool_idx = None
        return row

    def take_over(self, req: Req, row: int) -> None:
        """Let a request have a row that this worker was handed."""
        req.req_pool_idx = row

    def return_unused(self) -> None:
        """Hand leased but unused rows back, so that the other worker can have them."""
        if self.free_slots:
            self._table.give_rows(self.free_slots)
            self.free_slots = []

    def clear(self) -> None:
        """Upstream's flush: forget the rows of this worker only."""
        self.return_unused()

    def _lease(self, at_least: int) -> None:
        wanted = max(at_least, self._lease_rows)
        rows = self._table.take_rows_up_to(wanted, leave=self._leave)
        agreed = self.agree(len(rows))
        if agreed < len(rows):
            self._table.give_rows(rows[agreed:])
        self.free_slots.extend(rows[:agreed])
