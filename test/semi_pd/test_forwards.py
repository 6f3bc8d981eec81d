# SPDX-License-Identifier: Apache-2.0
"""Which prompts a forward computes, as the simulators have it."""

from __future__ import annotations

import pytest
from sglang.semi_pd.simulation.forwards import as_prefill, as_sglang


def test_prefill_fills_a_forward_in_order() -> None:
    forward = as_prefill()([100, 300, 9000, 50], is_begun=False)
    assert forward == [(0, 100), (1, 300), (2, 1648)]


def test_what_the_next_forward_computes_whole_is_not_divided() -> None:
    assert as_prefill()([600, 1500, 10], is_begun=False) == [(0, 600)]


def test_short_prompts_share_the_forwards_of_a_long_one() -> None:
    forward = as_prefill()([30_000, 500, 9000, 700], is_begun=True)
    assert forward == [(0, 848), (1, 500), (3, 700)]


def test_a_long_prompt_that_ends_leaves_room_for_the_beginning_of_another() -> None:
    assert as_prefill()([48, 9000], is_begun=True) == [(0, 48), (1, 2000)]


def test_a_prompt_alone_has_a_forward_twice_as_large() -> None:
    assert as_prefill()([4000], is_begun=False) == [(0, 4000)]
    assert as_prefill(512)([4000], is_begun=False) == [(0, 512)]


@pytest.mark.parametrize("is_begun", [False, True])
def test_sglang_fills_a_forward_and_divides(is_begun: bool) -> None:  # noqa: FBT001
    rule = as_sglang(1000)
    assert rule([600, 300, 500, 10], is_begun=is_begun) == [
        (0, 600),
        (1, 300),
        (2, 100),
    ]
    assert as_sglang()([9000], is_begun=is_begun) == [(0, 8192)]
