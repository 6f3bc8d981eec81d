# SPDX-License-Identifier: Apache-2.0
"""Decode's side of the prefix cache: a request that ends is given back to prefill.

Decode has no tree. It borrows the pages that prefill's tree owns, owns what it writes
itself, and gives both back, with the row, once no forward can write to them any more.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from sglang.semi_pd.utils import InstanceRole, row_label
from sglang.semi_pd.workers.messages import GiveBack, Loan, Sequence
from sglang.semi_pd.workers.slots import OnHost, pages_of
from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams, MatchResult
from sglang.srt.mem_cache.chunk_cache import ChunkCache

if TYPE_CHECKING:
    import torch
    from sglang.semi_pd.memory.block_table import BlockTable
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams

Send = Callable[[GiveBack], None]


@dataclass(slots=True)
class Borrowed:
    """What decode owes for one request; ``semi_pd_borrowed`` of the ``Req``.

    Attributes:
        loan: as in the handover.
        is_settled: the lender keeps nothing for it any more: the request was put aside
            and runs on pages of decode's own.
    """

    loan: Loan
    is_settled: bool = False

    @property
    def shared_tokens(self) -> int:
        """Tokens at the start of the row whose pages are borrowed."""
        return 0 if self.is_settled else self.loan.shared_tokens


class _Leaving(NamedTuple):
    """A request on its way back; ``row`` is None if its own pages are gone already.

    Who takes it back may change while it waits; ``was_settled``: as it was at the end.
    """

    req: Req
    message: GiveBack
    row: int | None
    slots: OnHost
    was_settled: bool


class AdoptedCache(ChunkCache):
    """Upstream's cache of the decode role, for requests whose KV is there already.

    Upstream copies the tokens and slots of each request that joins, as if it had just
    computed them; where all is taken for cached, as it is, nothing is copied.
    """

    def match_prefix(self, params: MatchPrefixParams) -> MatchResult:
        found = super().match_prefix(params)
        req = params.req
        if req is None or req.req_pool_idx is None:
            return found
        row = self.req_to_token_pool.req_to_token[req.req_pool_idx]
        there = row[: req.kv_committed_len]
        return found._replace(device_indices=there, cache_protected_len=0)

    def cache_unfinished_req(
        self,
        req: Req,
        chunked: bool = False,  # noqa: FBT001 - upstream's signature
    ) -> None:
        """Nothing to note: decode computes no prompt in chunks."""


class BorrowingCache(AdoptedCache):
    """The cache of requests that somebody has lent.

    Attributes:
        lender: generation of the prefill worker that takes requests back.
        send: delivers a message to it; None on ranks that do not speak.
    """

    def __init__(self, params: CacheInitParams, table: BlockTable, lender: int) -> None:
        super().__init__(params)
        self.lender = lender
        self.send: Send | None = None
        self._table = table
        self._to_slot: int | None = None
        self._leaving: deque[_Leaving] = deque()

    @property
    def leaving(self) -> int:
        """Requests that have ended and wait for a forward to finish."""
        return len(self._leaving)

    def cache_finished_req(
        self,
        req: Req,
        is_insert: bool = True,  # noqa: FBT001 - upstream's signature
        *,
        kv_len_to_handle: int,
    ) -> None:
        """A request ends; or, without ``is_insert``, it is put aside to run again."""
        borrowed: Borrowed = req.semi_pd_borrowed
        row = req.req_pool_idx
        slots = self.req_to_token_pool.req_to_token[row, : req.kv.kv_allocated_len]
        if is_insert:
            self._leave(req, borrowed, slots, row)
            req.kv = None
            self.req_to_token_pool.give_up(req)
            return
        shared = borrowed.shared_tokens
        self.token_to_kv_pool_allocator.free(slots[shared:kv_len_to_handle])
        if not borrowed.is_settled:
            self._leave(req, borrowed, slots[:shared], None)
            borrowed.is_settled = True

    def turn_to(self, lender: int, send: Send | None) -> None:
        """From now on another prefill worker takes requests back."""
        self.lender, self.send, self._to_slot = lender, send, None

    def give_back(self) -> None:
        """Give up what no forward can write to any more, oldest first."""
        while self._leaving and self._leaving[0].slots.is_finished:
            self._give_back(self._leaving.popleft())

    def _leave(
        self, req: Req, borrowed: Borrowed, slots: torch.Tensor, row: int | None
    ) -> None:
        message = GiveBack(
            request_id=req.rid,
            loan=borrowed.loan,
            has_row=row is not None,
            output_ids=req.output_ids.tolist(),
            committed_tokens=req.kv_committed_len,
            allocated_tokens=req.kv.kv_allocated_len,
            shared_tokens=borrowed.shared_tokens,
            reasoning_tokens=req.reasoning_tokens,
            sequence=None,
        )
        on_host = self.token_to_kv_pool_allocator.copy_to_host(slots)
        is_settled = borrowed.is_settled
        self._leaving.append(_Leaving(req, message, row, on_host, is_settled))

    def _give_back(self, leaving: _Leaving) -> None:
        """As at the handover, the row is last: when it has come, all has."""
        req, message, row, (slots, _), was_settled = leaving
        shared_tokens = message.shared_tokens
        table, to_slot = self._table, self._receiver()
        own = pages_of(slots[shared_tokens:], self.page_size)
        if row is None:
            table.give_pages(own)
        else:
            table.move_pages(own, to_slot)
        table.unshare(pages_of(slots[:shared_tokens], self.page_size))
        if row is not None:
            label = row_label(message.request_id, message.loan.number)
            table.move_row(row, to_slot, label)
        if was_settled or message.loan.lender != self.lender:
            message = dataclasses.replace(message, sequence=_sequence(req))
        if self.send is not None:
            self.send(message)

    def _receiver(self) -> int:
        if self._to_slot is None:
            self._to_slot = self._table.slot_of(InstanceRole.PREFILL, self.lender)
        return self._to_slot


def _sequence(req: Req) -> Sequence:
    return Sequence(
        input_ids=req.origin_input_ids.tolist(),
        extra_key=req.extra_key,
        priority=req.priority,
    )
