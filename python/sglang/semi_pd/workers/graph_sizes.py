# SPDX-License-Identifier: Apache-2.0
"""Fewer decode graphs than SGLang captures: a worker starts while others serve.

Each size is computed once before it is captured, on SMs and memory that serve clients.
A batch is padded to the next size; up to a quarter more rows cost a decode step little,
as it reads the weights once whatever their number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sglang.srt.model_executor.runner.decode_cuda_graph_runner import (
        DecodeCudaGraphRunner,
    )

_RUNNER = "sglang.srt.model_executor.runner"
DECODE_RUNNER = f"{_RUNNER}.decode_cuda_graph_runner.DecodeCudaGraphRunner"
PREFILL_RUNNER = f"{_RUNNER}.prefill_cuda_graph_runner.PrefillCudaGraphRunner"
"""SGLang's classes that capture, by dotted name."""

WIDEST_STEP = 0.8
"""A size is left out if it is more than this part of the next one that is kept."""


def leave_out_near(runner: DecodeCudaGraphRunner) -> None:
    """Drop sizes that are near a larger one, unless the user chose them."""
    given = runner.model_runner.server_args._semi_pd_raw_fields
    if given["cuda_graph_bs_decode"] is None:
        runner.capture_bs = without_near(runner.capture_bs)


def without_near(sizes: list[int]) -> list[int]:
    """The largest size, and below it in steps of a fifth."""
    kept: list[int] = []
    for size in sorted(sizes, reverse=True):
        if not kept or size <= WIDEST_STEP * kept[-1]:
            kept.append(size)
    return kept[::-1]
