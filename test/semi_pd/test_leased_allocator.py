# SPDX-License-Identifier: Apache-2.0
"""Pages that a forward may still write to are nobody else's, on a GPU's schedule."""

from __future__ import annotations

import pytest
from test_prefix_tree import PAGE, PAGES, Forward, Pair, no_published_args

pytestmark = pytest.mark.upstream
__all__ = ["no_published_args"]


class Copy(Forward):
    """Stands where a CUDA event says that slots are on the host."""

    def synchronize(self) -> None:
        self.is_over = True


@pytest.fixture
def pair(no_published_args: None) -> Pair:
    return Pair()


@pytest.fixture
def forward(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Forward:
    """It runs while prefill, which has all pages, frees four of them."""
    from sglang.semi_pd.workers.slots import OnHost

    allocator, forward = pair.prefill.allocator, Forward()
    taken = allocator.alloc(PAGES * PAGE)
    with monkeypatch.context() as patch:
        patch.setattr(
            type(allocator),
            "copy_to_host",
            lambda self, slots: OnHost(slots.clone(), (Copy(), forward)),
        )
        allocator.free(taken[: 4 * PAGE])
    return forward


def others_may_have(pair: Pair) -> int:
    """Pages that decode can take."""
    found = pair.decode.table.take_up_to(PAGES, 0)
    pair.decode.table.give_pages(found)
    return len(found)


def test_what_was_recycled_and_not_used(pair: Pair, forward: Forward) -> None:
    allocator = pair.prefill.allocator
    assert allocator.lease(4), "for itself it may have them at once"
    allocator.return_unused()
    assert others_may_have(pair) == 0
    forward.is_over = True
    allocator.return_unused()
    assert others_may_have(pair) == 4


def test_what_ranks_do_not_agree_on(pair: Pair, forward: Forward) -> None:
    allocator = pair.prefill.allocator
    allocator.agree = lambda count: count - 3
    assert not allocator.lease(4)
    assert allocator.leased_pages == 1
    assert others_may_have(pair) == 0
    forward.is_over = True
    allocator.publish_retired()
    assert others_may_have(pair) == 3
