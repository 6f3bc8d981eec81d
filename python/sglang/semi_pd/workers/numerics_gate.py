# SPDX-License-Identifier: Apache-2.0
"""Before a worker serves: does a matrix product come out right on its share of the GPU?

Under a cap on the SMs, BF16 products can be silently wrong. Measured on an H200 (driver
580, CUDA 13.0, torch 2.11) under MPS: right at 132, 118, 66, 38 and 12 visible SMs,
wrong by 20 to 60 % at 104, 92, 78, 52 and 26. No token may come from such a worker.
"""

from __future__ import annotations

import torch
from sglang.semi_pd.errors import SemiPDError
from sglang.semi_pd.partition.matrix_products import (
    WORST_ERROR,
    Products,
    visible_sms,
)


class NumericsError(SemiPDError):
    """Products are wrong on this share of the GPU, or cannot be computed."""

    see = "split-and-workers"


_MEND = (
    "leave out --initial-prefill-sm and --initial-decode-sm: a right split is then "
    "found; or use --sm-partition-backend none"
)


def check(device: torch.device, percentage: int) -> None:
    """Compare BF16 products with FP32 ones, on this process's share.

    Raises:
        NumericsError: one of them is off by more than ``WORST_ERROR``, or is none.
    """
    count = visible_sms(device)
    stream = torch.cuda.current_stream(device)
    NumericsGate(device).check(f"{percentage} % of the SMs, {count} of them,", stream)


class NumericsGate:
    """Products that must come out right on one stream after another."""

    def __init__(self, device: torch.device) -> None:
        self._products = Products(device)

    def check(self, where: str, stream: torch.cuda.Stream) -> None:
        """Compute all of them on ``stream``, whose SMs an error calls ``where``.

        Raises:
            NumericsError: one of them is off by more than ``WORST_ERROR``, or is none.
        """
        try:
            worst = self._products.worst_error(stream)
        except RuntimeError as error:
            raise NumericsError(
                f"BF16 products cannot be computed on {where}",
                why=str(error).partition("\n")[0],
                mend=_MEND,
            ) from error
        if worst > WORST_ERROR:
            raise NumericsError(
                f"BF16 products are wrong on {where}",
                why=f"their relative error is {worst:.2g}",
                mend=_MEND,
            )
