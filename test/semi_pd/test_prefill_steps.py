# SPDX-License-Identifier: Apache-2.0
"""How large prefill's forwards are, and who shares them."""

from __future__ import annotations

import random

import pytest

pytestmark = pytest.mark.upstream

PAGE = 16


def steps(chunk: int = 8192, *, page: int = 1, is_given: bool = False):
    from sglang.semi_pd.workers.prefill_steps import PrefillSteps

    return PrefillSteps(chunk, page, is_given=is_given)


def test_several_prompts_make_small_forwards() -> None:
    assert steps().step(0, [100, 8000]).tokens == 2048


def test_a_prompt_that_nobody_waits_behind_is_whole() -> None:
    assert steps().step(0, [4000]).tokens >= 4000
    assert steps().step(0, [5000]).tokens == 2048
    assert steps().step(3000, []).under_way == 3000


@pytest.mark.parametrize("chunk", [512, 8192])
def test_a_size_that_the_operator_chose_is_kept(chunk: int) -> None:
    given = steps(chunk, is_given=True)
    assert given.step(0, [4000]).tokens == chunk
    assert given.step(0, [100, 4000]).tokens == chunk
    assert given.step(20_000, []).under_way == chunk


def test_a_small_default_of_sglang_is_kept() -> None:
    assert steps(1024).step(0, [4000]).tokens == 1024


def test_short_prompts_join_a_long_one() -> None:
    step = steps().step(30_000, [9000, 500, 2000, 700])
    assert step.joining == {1, 3}
    assert step.under_way == 2048 - 500 - 700


def test_a_long_prompt_keeps_a_quarter() -> None:
    step = steps().step(30_000, [400] * 20)
    assert step.under_way >= 512
    assert len(step.joining) == 3


def test_the_first_of_those_that_wait_is_not_passed_over() -> None:
    made = steps()
    step = made.step(30_000, [1900, 100])
    assert step.joining == {0}
    assert step.under_way == 148
    assert made.step(30_000, [1900, 100]).under_way == 2048, "its turn"
    assert made.step(30_000, [1900, 100]).joining == {0}
    assert not steps().step(30_000, [2048]).joining


def test_the_order_of_those_that_wait_stays() -> None:
    step = steps().step(30_000, [9000, 500, 9000, 700])
    a, b, c, d = waited = [object() for _ in range(4)]
    assert step.put_back(waited, [d]) == [a, c, d], "it found no room after all"
    assert step.put_back(waited, []) == [a, c]


def test_what_is_left_of_a_long_prompt_leaves_room_for_others() -> None:
    step = steps().step(300, [1700, 100])
    assert step.under_way == 300
    assert step.joining == {0, 1}


@pytest.mark.parametrize("page", [1, PAGE, 64, 2048])
def test_no_forward_is_too_large_or_empty(page: int) -> None:
    source = random.Random(page)
    for _ in range(2000):
        made = steps(page=page, is_given=source.random() < 0.5)
        waiting = [source.randint(1, 5000) for _ in range(source.randint(0, 6))]
        under_way = source.randint(1, 40_000)
        step = made.step(under_way, waiting)
        beside = sum(-(-waiting[n] // page) * page for n in step.joining)
        assert 0 < step.under_way <= step.tokens <= 8192
        assert step.under_way % page == 0
        if step.under_way < under_way:  # else there is none under way beside them
            assert step.under_way + beside <= step.tokens
