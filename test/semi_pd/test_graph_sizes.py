# SPDX-License-Identifier: Apache-2.0
"""Which batch sizes decode captures."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from sglang.semi_pd.workers import graph_sizes

SGLANGS = [1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120]
"""With ``--cuda-graph-max-bs-decode 128``, before the largest."""


def runner(sizes: list[int], given: list[int] | None) -> Any:
    args = SimpleNamespace(_semi_pd_raw_fields={"cuda_graph_bs_decode": given})
    return SimpleNamespace(
        capture_bs=sizes, model_runner=SimpleNamespace(server_args=args)
    )


def test_the_largest_stays_and_no_step_is_wider_than_a_third() -> None:
    kept = graph_sizes.without_near([*SGLANGS, 128])
    assert kept[-1] == 128
    assert kept[0] == 1
    for small, large in zip(kept, kept[1:], strict=False):
        assert small <= graph_sizes.WIDEST_STEP * large
        assert large <= 2 * small
    assert len(kept) == 13


@pytest.mark.parametrize("sizes", [[1], [7, 8], []])
def test_few_sizes(sizes: list[int]) -> None:
    assert graph_sizes.without_near(sizes) == sizes[-1:]


def test_what_the_user_chose_stays() -> None:
    chosen = runner([7, 8, 9], given=[7, 8, 9])
    graph_sizes.leave_out_near(chosen)
    assert chosen.capture_bs == [7, 8, 9]


def test_fewer_are_captured() -> None:
    default = runner([7, 8, 9], given=None)
    graph_sizes.leave_out_near(default)
    assert default.capture_bs == [7, 9]
