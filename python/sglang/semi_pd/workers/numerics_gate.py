# SPDX-License-Identifier: Apache-2.0
"""Before a worker serves: does a matrix product come out right on its share of the GPU?

Under a cap on the SMs, BF16 products can be silently wrong. Measured on an H200 (driver
580, CUDA 13.0, torch 2.11) under MPS: right at 132, 118, 66, 38 and 12 visible SMs,
wrong by 20 to 60 % at 104, 92, 78, 52 and 26. No token may come from such a worker.
"""

from __future__ import annotations

import logging

import torch
from sglang.semi_pd.errors import SemiPDError

logger = logging.getLogger(__name__)

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
    """Compare BF16 products with FP32 ones, on this process's share.

    Raises:
        NumericsError: one of them is off by more than ``WORST_ERROR``.
    """
    count = torch.cuda.get_device_properties(device).multi_processor_count
    stream = torch.cuda.current_stream(device)
    NumericsGate(device).check(f"{percentage} % of the SMs, {count} of them,", stream)


class NumericsGate:
    """Products with known results, to be computed on one stream after another."""

    def __init__(self, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(0)
        self._cases = [_Case(device, generator, shape) for shape in SHAPES]
        torch.cuda.synchronize(device)

    def check(self, where: str, stream: torch.cuda.Stream) -> None:
        """Compute all of them on ``stream``, whose SMs an error calls ``where``.

        Raises:
            NumericsError: one of them is off by more than ``WORST_ERROR``.
        """
        worst = max(case.error(stream) for case in self._cases)
        if worst > WORST_ERROR:
            raise NumericsError(
                f"BF16 products are wrong on {where}",
                why=f"their relative error is {worst:.2g}",
                mend="on an H200 these MPS percentages are right: 100, 95, 90, 50, 30, "
                "25, 10 and 5",
            )


class _Case:
    """One product."""

    def __init__(
        self,
        device: torch.device,
        generator: torch.Generator,
        shape: tuple[int, int, int],
    ) -> None:
        m, k, n = shape
        self._a = torch.randn(m, k, generator=generator, device=device).bfloat16()
        self._b = torch.randn(n, k, generator=generator, device=device).bfloat16()
        self._right = self._a.float() @ self._b.float().t()
        self._found = torch.empty(m, n, device=device, dtype=torch.bfloat16)

    def error(self, stream: torch.cuda.Stream) -> float:
        """Relative Frobenius error of computing it now; infinite for NaN or none."""
        try:
            with torch.cuda.stream(stream):
                # What is left unwritten must not be an earlier, right product.
                self._found.fill_(torch.nan)
                torch.mm(self._a, self._b.t(), out=self._found)
        except RuntimeError:  # cuBLAS: its clusters find no room on these SMs
            logger.exception("A product cannot be computed")
            return float("inf")
        stream.synchronize()
        error = float((self._found - self._right).norm() / self._right.norm())
        return error if error == error else float("inf")
