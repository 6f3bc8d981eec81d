# SPDX-License-Identifier: Apache-2.0
"""Before a worker serves: does a matrix product come out right on its share of the GPU?

Under a cap on the SMs, BF16 products can be silently wrong. Measured on an H200 (driver
580, CUDA 13.0, torch 2.11) under MPS: right at 132, 118, 66, 38 and 12 visible SMs,
wrong by 20 to 60 % at 104, 92, 78, 52 and 26. No token may come from such a worker.
"""

from __future__ import annotations

import torch
from sglang.semi_pd.errors import SemiPDError

WORST_ERROR = 1e-2
"""Relative Frobenius error; a right BF16 product is near 2e-3."""

SHAPES = (
    (1, 4096, 6144),
    (16, 4096, 6144),
    (64, 4096, 14336),
    (256, 14336, 4096),
    (512, 1024, 1024),
    (512, 4096, 4096),
    (1024, 4096, 6144),
    (3000, 4096, 4096),
)
"""(m, k, n) of products like a model's; which of them fail depends on the SM count."""


class NumericsError(SemiPDError):
    """Products are wrong on this share of the GPU."""


def check(device: torch.device, percentage: int) -> None:
    """Compare BF16 products with FP32 ones.

    Raises:
        NumericsError: one of them is off by more than ``WORST_ERROR``.
    """
    generator = torch.Generator(device).manual_seed(0)
    worst = max(_error(device, generator, shape) for shape in SHAPES)
    if worst <= WORST_ERROR:
        return
    count = torch.cuda.get_device_properties(device).multi_processor_count
    raise NumericsError(
        f"BF16 products are wrong at {percentage} % of the SMs",
        why=f"with {count} SMs visible the relative error is {worst:.2g}",
        mend="on an H200 these are right: 100, 95, 90, 50, 30, 25, 10 and 5",
    )


def _error(
    device: torch.device, generator: torch.Generator, shape: tuple[int, int, int]
) -> float:
    m, k, n = shape
    a = torch.randn(m, k, generator=generator, device=device).bfloat16()
    b = torch.randn(n, k, generator=generator, device=device).bfloat16()
    found = torch.nn.functional.linear(a, b).float()
    right = torch.nn.functional.linear(a.float(), b.float())
    error = float((found - right).norm() / right.norm())
    return error if error == error else float("inf")
