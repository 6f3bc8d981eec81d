# SPDX-License-Identifier: Apache-2.0
"""Lending, giving back, and moving the prefix cache, with SGLang's own radix tree."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any

import pytest
from sglang.semi_pd.memory.block_table import Answer, BlockTable
from sglang.semi_pd.utils import InstanceRole, row_label
from table_processes import assert_in_order, worker

pytestmark = pytest.mark.upstream

PAGES, ROWS, PAGE = 64, 8, 4


@dataclass
class Worker:
    """One worker's pools over the shared table, on the CPU."""

    table: BlockTable
    allocator: Any
    rows: Any
    tree: Any

    @classmethod
    def make(cls, table, req_to_token, role, generation=1) -> Worker:
        import torch
        from sglang.semi_pd.resident.shared_pools import SharedReqToTokenPool
        from sglang.semi_pd.workers.borrowing_cache import BorrowingCache
        from sglang.semi_pd.workers.leased_allocator import LeasedAllocator
        from sglang.srt.mem_cache.cache_init_params import CacheInitParams
        from sglang.srt.mem_cache.radix_cache import RadixCache

        mine = worker(table, role, generation)
        allocator = LeasedAllocator(
            mine,
            size=PAGES * PAGE,
            page_size=PAGE,
            dtype=torch.float32,
            device="cpu",
            kvcache=None,
        )
        rows = SharedReqToTokenPool(req_to_token, mine)
        params = CacheInitParams(
            disable=False,
            req_to_token_pool=rows,
            token_to_kv_pool_allocator=allocator,
            page_size=PAGE,
        )
        is_prefill = role is InstanceRole.PREFILL
        tree = RadixCache(params) if is_prefill else BorrowingCache(params, mine, 1)
        return cls(mine, allocator, rows, tree)

    @property
    def cached(self) -> int:
        """Tokens in the tree that no request locks."""
        return self.tree.evictable_size()


class Pair:
    """A prefill and a decode worker; a request goes there and comes back."""

    def __init__(self) -> None:
        import torch
        from sglang.semi_pd.workers.lender import Lender

        self.table = BlockTable.create(num_pages=PAGES, num_rows=ROWS, page_size=PAGE)
        self.req_to_token = torch.zeros((ROWS + 1, 128), dtype=torch.int32)
        self.prefill = Worker.make(self.table, self.req_to_token, InstanceRole.PREFILL)
        self.decode = Worker.make(self.table, self.req_to_token, InstanceRole.DECODE)
        self.lender = Lender(
            self.prefill.tree, self.prefill.rows, self.prefill.table, 1
        )
        self.predecessor = self.lender
        self.sent: list = []
        self.decode.tree.send = self.sent.append
        self.number = 0

    def compute(self, tokens: list[int], rid: str = "r"):
        """What upstream's prefill does to a request, up to its last chunk."""
        import torch
        from sglang.srt.managers.schedule_batch import Req, ReqKvInfo
        from sglang.srt.mem_cache.base_prefix_cache import EvictParams
        from sglang.srt.sampling.sampling_params import SamplingParams

        req = Req(rid, "", array("q", tokens), SamplingParams())
        req.init_next_round_input(self.prefill.tree)
        self.prefill.tree.inc_lock_ref(req.last_node)
        self.prefill.rows.alloc([req])
        found = len(req.prefix_indices)
        missing = -(-(len(tokens) - found) // PAGE) * PAGE
        self.prefill.allocator.demand_pages = missing // PAGE
        available = self.prefill.allocator.available_size()
        if available < missing:
            self.prefill.tree.evict(EvictParams(num_tokens=missing - available))
        new = self.prefill.allocator.alloc(missing)
        assert new is not None, "what was evicted must be there"
        row = self.req_to_token[req.req_pool_idx]
        row[: len(tokens)] = torch.cat((req.prefix_indices, new))[: len(tokens)]
        req.kv = ReqKvInfo(kv_allocated_len=len(tokens), swa_evicted_seqlen=0)
        req.kv_committed_len = len(tokens)
        req.set_extend_range(found, len(tokens))
        self.prefill.tree.cache_unfinished_req(req)
        return req

    def hand_over(self, req):
        """As ``HandoverSender`` and ``adopt`` do; returns decode's request."""
        from sglang.semi_pd.workers.borrowing_cache import Borrowed
        from sglang.semi_pd.workers.messages import Loan
        from sglang.semi_pd.workers.slots import pages_of
        from sglang.srt.managers.schedule_batch import Req, ReqKvInfo

        shared, committed = req.cache_protected_len, req.kv_committed_len
        loan = Loan(self.number, self.lender._generation, shared)
        self.number += 1
        slots = self.req_to_token[req.req_pool_idx, :committed]
        slot = self.decode.table.lease.slot
        self.prefill.table.share_pages(pages_of(slots[:shared], PAGE), slot)
        self.prefill.table.move_pages(pages_of(slots[shared:], PAGE), slot)
        row = self.prefill.rows.give_up(req)
        self.prefill.table.move_row(row, slot, row_label(req.rid, loan.number))
        req.kv = None
        self.lender.lend(req, loan)
        there = Req(req.rid, "", req.origin_input_ids, req.sampling_params)
        there.req_pool_idx, there.kv_committed_len = row, committed
        there.kv = ReqKvInfo(kv_allocated_len=committed, swa_evicted_seqlen=0)
        there.semi_pd_borrowed = Borrowed(loan)
        self.prefill.allocator.return_unused()
        return there

    def generate(self, req, tokens: list[int]) -> None:
        """Decode writes tokens; the last one has no KV."""
        import torch

        for token in tokens:
            req.output_ids.append(token)
        grown = len(req.origin_input_ids) + len(req.output_ids) - 1
        have = -(-req.kv_committed_len // PAGE) * PAGE
        row = self.req_to_token[req.req_pool_idx]
        last_page = int(row[req.kv_committed_len - 1]) // PAGE * PAGE
        for place in range(req.kv_committed_len, min(grown, have)):
            row[place] = last_page + place % PAGE
        if grown > have:
            new = self.decode.allocator.alloc(-(-(grown - have) // PAGE) * PAGE)
            row[have:grown] = new[: grown - have].to(torch.int32)
        req.kv_committed_len = req.kv.kv_allocated_len = grown

    def end(self, req, *, is_insert: bool = True) -> None:
        """Decode ends or puts aside a request; prefill hears of it."""
        self.finish(req, is_insert=is_insert)
        self.decode.tree.give_back()
        self.take_back()

    def finish(self, req, *, is_insert: bool = True) -> None:
        """Decode ends a request, whose last forward may still run."""
        from sglang.srt.mem_cache.chunk_cache import ChunkCache

        assert isinstance(self.decode.tree, ChunkCache)
        self.decode.tree.cache_finished_req(
            req, is_insert, kv_len_to_handle=req.kv_committed_len
        )
        if req.req_pool_idx is not None:
            self.decode.rows.free(req)
            req.kv = None

    def take_back(self) -> None:
        """Prefill hears of what was given back."""
        while self.sent:
            self.lender.take_back(self.sent.pop(0))
        self.decode.allocator.return_unused()
        self.decode.rows.return_unused()

    def settle(self) -> int:
        """Give back what is unused; returns the pages still owned."""
        for one in (self.prefill, self.decode):
            one.allocator.return_unused()
            one.rows.return_unused()
        assert_in_order(self.table)
        return PAGES - self.table.usage().pages_free


@pytest.fixture
def pair(no_published_args):
    return Pair()


@pytest.fixture
def no_published_args(monkeypatch):
    """Upstream asks the server's arguments when a request is released."""
    from types import SimpleNamespace

    from sglang.srt.mem_cache import common

    monkeypatch.setattr(
        common, "get_spec", lambda: SimpleNamespace(speculative_algorithm=None)
    )
    quiet = SimpleNamespace(strip_thinking_cache=False)
    monkeypatch.setattr(common, "get_serving", lambda: quiet)
    from sglang.srt.managers import schedule_batch

    monkeypatch.setattr(schedule_batch, "get_serving", lambda: quiet)


def turn(pair: Pair, prompt: list[int], answer: list[int]) -> int:
    """One request there and back; returns the cached tokens of its prompt."""
    req = pair.compute(prompt)
    found = req.extend_range.start
    there = pair.hand_over(req)
    pair.generate(there, answer)
    pair.end(there)
    return found


def test_the_second_turn_hits_prompt_and_answer(pair):
    first, answer = list(range(10, 20)), list(range(50, 59))
    assert turn(pair, first, answer) == 0
    assert pair.lender.loans == 0
    # 18 tokens have their KV: 4 full pages are cached, the tail is free again.
    assert pair.prefill.cached == 16
    assert pair.settle() == 4
    assert turn(pair, [*first, *answer, 7, 8], [9, 9]) == 16
    assert pair.settle() * PAGE == pair.prefill.cached
    assert pair.table.usage().borrows == 0


def test_lent_pages_are_borrowed_and_not_evicted(pair):
    from sglang.srt.mem_cache.base_prefix_cache import EvictParams

    there = pair.hand_over(pair.compute(list(range(10))))
    assert pair.table.usage().borrows == 2
    assert pair.prefill.cached == 0
    pair.prefill.tree.evict(EvictParams(num_tokens=100))
    pair.generate(there, [1, 2])
    pair.end(there)
    assert pair.prefill.cached == 8


def test_two_that_say_the_same_are_kept_once(pair):
    tokens = list(range(12))
    both = [pair.hand_over(pair.compute(tokens, rid)) for rid in "ab"]
    for there in both:
        pair.generate(there, [1, 2, 3, 4, 5])
    for there in both:
        pair.end(there)
    assert pair.prefill.cached == 16
    assert pair.settle() == 4


def test_put_aside_and_resumed(pair):
    """Its lock is let go; when it ends later, all its tokens are cached."""
    tokens = list(range(12))
    there = pair.hand_over(pair.compute(tokens))
    pair.generate(there, [1, 2, 3])
    pair.end(there, is_insert=False)
    assert pair.lender.loans == 0
    assert pair.table.usage().borrows == 0
    assert pair.prefill.cached == 12  # the prompt may be evicted now
    from sglang.srt.managers.schedule_batch import ReqKvInfo

    pair.decode.rows.alloc([there])
    new = pair.decode.allocator.alloc(16)
    pair.req_to_token[there.req_pool_idx, :16] = new.int()
    there.kv_committed_len = 14
    there.kv = ReqKvInfo(kv_allocated_len=14, swa_evicted_seqlen=0)
    pair.generate(there, [4, 5, 6])
    pair.end(there)
    assert pair.prefill.cached == 16
    assert pair.settle() == 4


class Forward:
    """Stands where a CUDA event says whether a forward has finished."""

    def __init__(self) -> None:
        self.is_over = False

    def query(self) -> bool:
        return self.is_over


def succeed(pair: Pair, generation: int = 2) -> Worker:
    """A new prefill worker takes requests back; its predecessor still has the pages."""
    from sglang.semi_pd.workers.lender import Lender

    old, pair.predecessor = pair.prefill, pair.lender
    for one in (old, pair.decode):
        one.allocator.return_unused()
    pair.prefill = Worker.make(
        pair.table, pair.req_to_token, InstanceRole.PREFILL, generation=generation
    )
    pair.lender = Lender(
        pair.prefill.tree, pair.prefill.rows, pair.prefill.table, generation
    )
    pair.decode.tree.turn_to(generation, pair.sent.append)
    return old


def bequeath(pair: Pair, old: Worker) -> None:
    """The predecessor leaves: its pages, then what is in them."""
    from sglang.semi_pd.workers.prefix_tree import export_paths
    from sglang.semi_pd.workers.succession import inherit
    from sglang.semi_pd.workers.succession_messages import Heritage

    paths, lent = export_paths(old.tree), pair.predecessor.still_lent()
    old.allocator.return_unused()
    old.rows.return_unused()
    leases = old.table.lease, pair.prefill.table.lease
    pair.table.inherit(*(lease.slot for lease in leases if lease))
    inherit(Heritage([paths], lent), pair.prefill.tree, pair.prefill.table, 0)
    pair.lender.has_heritage(lent)


def test_a_successor_inherits_tree_and_loans(pair):
    """Planned: pages move by ``inherit``, the tree as paths; loans come back later."""
    turn(pair, list(range(12)), [1, 2, 3, 4, 5])
    turn(pair, [*range(12), 9, 9, 9, 9], [1, 2, 3, 4, 5])
    there = pair.hand_over(pair.compute(list(range(100, 110))))
    old = succeed(pair)
    bequeath(pair, old)
    tree = pair.prefill.tree
    assert tree.total_size() == old.tree.total_size()
    pair.generate(there, [1, 2, 3])
    pair.end(there)
    assert pair.settle() * PAGE == tree.total_size() == pair.prefill.cached
    assert turn(pair, [*range(12), 9, 9, 9, 9, 1, 2], [1, 1]) == 16


def test_a_successor_does_not_evict_what_is_lent(pair):
    """Nor the one after it; what has come back may go."""
    there = pair.hand_over(pair.compute(list(range(12))))
    turn(pair, list(range(50, 62)), [1, 2, 3, 4, 5])
    for generation in (2, 3):
        bequeath(pair, succeed(pair, generation))
        assert pair.prefill.cached == 16, "the other one"
        assert pair.prefill.tree.total_size() == 28
    pair.generate(there, [1, 2, 3, 4, 5])
    pair.end(there)
    assert pair.prefill.cached == pair.prefill.tree.total_size() == 32
    assert pair.lender.loans == 0
    pair.settle()


@pytest.mark.parametrize("comes_back_first", [True, False])
def test_what_predecessor_and_successor_have_both_is_freed_once(pair, comes_back_first):
    """The successor computed the same prompt, in pages of its own, before it heard."""
    from sglang.semi_pd.workers.lender import Lender

    tokens = list(range(12))
    there = pair.hand_over(pair.compute(tokens, "old"))
    pair.generate(there, [1, 2, 3, 4, 5])
    old = succeed(pair)
    lender = pair.lender
    again = pair.hand_over(pair.compute(tokens, "new"))
    assert isinstance(lender, Lender)
    if comes_back_first:
        pair.end(there)
    bequeath(pair, old)
    if not comes_back_first:
        pair.end(there)
    pair.generate(again, [1, 2, 3, 4, 5])
    pair.end(again)
    assert pair.settle() * PAGE == pair.prefill.tree.total_size() == 16
    assert pair.table.usage().borrows == 0
    assert turn(pair, [*tokens, 1, 2, 3, 4, 5], [6, 6]) == 16


@pytest.mark.parametrize("comes_back_first", [True, False])
def test_a_request_that_ends_in_a_switch_comes_back_to_the_successor(
    pair, monkeypatch, comes_back_first
):
    """It ended under the lender, but its last forward only under the successor."""
    from sglang.semi_pd.workers.leased_allocator import LeasedAllocator
    from sglang.semi_pd.workers.slots import OnHost

    there = pair.hand_over(pair.compute(list(range(12))))
    pair.generate(there, [1, 2, 3, 4, 5])
    forward = Forward()
    with monkeypatch.context() as patch:
        patch.setattr(
            LeasedAllocator,
            "copy_to_host",
            lambda self, slots: OnHost(slots.clone(), (forward,)),
        )
        pair.finish(there)
    pair.decode.tree.give_back()
    assert not pair.sent, "its forward runs"
    old = succeed(pair)
    if not comes_back_first:
        bequeath(pair, old)
    forward.is_over = True
    pair.decode.tree.give_back()
    pair.take_back()
    if comes_back_first:
        bequeath(pair, old)
    assert pair.settle() * PAGE == pair.prefill.tree.total_size()
    assert turn(pair, [*range(12), 1, 2, 3, 4, 5], [6, 6]) >= 12


def test_what_is_evicted_is_there_for_its_allocation(pair):
    """Even if the other worker has everything else reserved."""
    pair.table.set_reserve(pair.decode.table.lease.slot, PAGES // 2)
    for first in range(0, 2000, 100):
        turn(pair, list(range(first, first + 40)), [1, 2])
    assert pair.settle() * PAGE == pair.prefill.cached
    assert pair.table.usage().pages_free >= 0


def test_promised_pages_are_not_taken_back(pair):
    from sglang.srt.mem_cache.base_prefix_cache import EvictParams

    turn(pair, list(range(40)), [1, 2])
    pair.settle()
    allocator, table = pair.prefill.allocator, pair.prefill.table
    with allocator.promising(lambda: table.publish_answer(Answer(1, is_busy=False))):
        pair.prefill.tree.evict(EvictParams(num_tokens=40))
    assert allocator._next_recyclable() is None
    assert pair.decode.table.answer_of(table.lease.slot).sequence == 0
    allocator.publish_retired()
    assert pair.decode.table.answer_of(table.lease.slot).sequence == 1
    assert pair.table.usage().pages_free == PAGES
