# SPDX-License-Identifier: Apache-2.0
"""Prefill's side of the prefix cache: requests that are lent, and that come back.

The radix tree is upstream's. A request that is handed over keeps its prefix locked in
the tree, as a running request of upstream does, until decode gives it back: then
upstream's own code inserts the whole sequence, frees duplicates and unlocks.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from sglang.semi_pd.utils import row_label
from sglang.semi_pd.workers import prefix_tree
from sglang.semi_pd.workers.handover import find_row
from sglang.semi_pd.workers.messages import GiveBack, Loan
from sglang.semi_pd.workers.prefix_tree import StillLent
from sglang.srt.managers.schedule_batch import Req, ReqKvInfo
from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
from sglang.srt.mem_cache.common import release_kv_cache
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.sampling.sampling_params import SamplingParams

if TYPE_CHECKING:
    from sglang.semi_pd.memory.block_table import BlockTable
    from sglang.semi_pd.resident.shared_pools import SharedReqToTokenPool
    from sglang.semi_pd.workers.leased_allocator import LeasedAllocator
    from sglang.srt.mem_cache.base_prefix_cache import BasePrefixCache
    from sglang.srt.mem_cache.radix_cache import RadixCache, TreeNode


def note_rewriting(
    original: Callable[..., None], tree: RadixCache, req: Req, *args: Any, **kwargs: Any
) -> None:
    """Around upstream's caching of a computed prompt: is its row written once more?

    It is if the tree has a part of the prompt in other slots already: that part is
    freed, and the row gets the slots of the tree.
    """
    allocator: LeasedAllocator = tree.token_to_kv_pool_allocator
    before = allocator.frees
    original(tree, req, *args, **kwargs)
    req.semi_pd_row_is_rewritten = allocator.frees > before


class Lender:
    """Requests that decode runs and whose prefix this worker keeps locked."""

    def __init__(
        self,
        tree: BasePrefixCache,
        rows: SharedReqToTokenPool,
        table: BlockTable,
        generation: int,
    ) -> None:
        self._tree, self._rows, self._table = tree, rows, table
        self._generation = generation
        self._lent: dict[int, Req] = {}
        self._inherited: dict[tuple[int, int], tuple[StillLent, TreeNode]] = {}
        self._has_heritage = False
        self._early: list[GiveBack] = []

    @property
    def loans(self) -> int:
        """Requests that decode has not given back."""
        return len(self._lent) + len(self._inherited)

    @property
    def lends(self) -> bool:
        """Whether there is a prefix cache to lend from."""
        return self._tree.is_tree_cache()

    def lend(self, req: Req, loan: Loan) -> None:
        """Keep ``req``, which was handed over, until it comes back."""
        req.semi_pd_request = req.prefix_indices = None
        if self.lends:
            self._lent[loan.number] = req

    def take_back(self, message: GiveBack) -> None:
        """Put a sequence into the tree and let go of what was locked for it."""
        is_foreign = message.loan.lender != self._generation
        if is_foreign and not self._has_heritage:
            self._early.append(message)
            return
        req = self._lent.pop(message.loan.number, None) if not is_foreign else None
        if message.has_row:
            self._release(message, req)
        elif req is not None and req.last_node is not None:
            self._tree.dec_lock_ref(req.last_node)
        loan = message.loan
        inherited = self._inherited.pop((loan.lender, loan.number), None)
        if inherited is not None:
            self._tree.dec_lock_ref(inherited[1])

    def still_lent(self) -> list[StillLent]:
        """What a successor must not evict."""
        own = [
            StillLent(
                lender=self._generation,
                number=number,
                token_ids=_tokens(req)[: req.cache_protected_len],
                extra_key=req.extra_key,
            )
            for number, req in self._lent.items()
        ]
        return [*own, *(lent for lent, _ in self._inherited.values())]

    def has_heritage(self, lent: Iterable[StillLent]) -> None:
        """The predecessor's tree is in this one: keep locked and take back what it had
        lent.

        Until then it cannot be told which pages are cached, and which are left.
        """
        self._has_heritage = True
        for one in lent:
            key = RadixKey(one.token_ids, one.extra_key)
            node = self._tree.match_prefix(MatchPrefixParams(key=key)).last_device_node
            self._tree.inc_lock_ref(node)
            self._inherited[one.lender, one.number] = one, node
        while self._early:
            self.take_back(self._early.pop(0))

    def _release(self, message: GiveBack, req: Req | None) -> None:
        row = find_row(
            self._table,
            row_label(message.request_id, message.loan.number),
            lambda: None,
        )
        is_known = req is not None
        if req is None:
            req = _newly_made(message)
        self._rows.take_over(req, row)
        req.kv = ReqKvInfo(
            kv_allocated_len=message.allocated_tokens, swa_evicted_seqlen=0
        )
        req.output_ids = array("q", message.output_ids)
        req.kv_committed_len = message.committed_tokens
        req.reasoning_tokens = message.reasoning_tokens
        if not is_known:
            # What was borrowed is the tree's, in these slots or others, or is gone.
            req.cache_protected_len = shared = message.shared_tokens
            cached = prefix_tree.cached_tokens(self._tree, req) if shared else 0
            req.skip_radix_cache_insert = cached < shared
        release_kv_cache(req, self._tree)


def _tokens(req: Req) -> array[int]:
    tokens: array[int] = req.origin_input_ids + req.output_ids
    return tokens


def _newly_made(message: GiveBack) -> Req:
    """A request that ends here and that another prefill worker began."""
    sequence = message.sequence
    assert sequence is not None, "who did not lend it is told its tokens"
    return Req(
        message.request_id,
        "",
        array("q", sequence.input_ids),
        SamplingParams(),
        extra_key=sequence.extra_key,
        priority=sequence.priority,
    )
