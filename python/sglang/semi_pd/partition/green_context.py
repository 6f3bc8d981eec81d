# SPDX-License-Identifier: Apache-2.0
"""Green contexts: CUDA streams whose kernels run on a chosen run of SM units.

The only file that speaks to the CUDA driver about them. A device is split once, the
same way in every process, so that a run of units names the same SMs everywhere; that
holds between clients of one MPS daemon as well.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from cuda.bindings import driver
from sglang.semi_pd.errors import SemiPDError
from sglang.semi_pd.partition.sm_ranges import SMRange, SMUnits

SMS_PER_UNIT = 8
"""The least that a Hopper divides into, so that clusters of 8 blocks find room."""

_SM = driver.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM


class GreenContextError(SemiPDError):
    """Green contexts cannot be had on this device, or the driver refused a call."""

    see = "split-and-workers"


class GreenDevice:
    """One device, cut into units; makes a stream on any run of them.

    Contexts and streams live as long as the process: work may be queued on them.

    Args:
        device: a CUDA device with an index; its primary context must be active.
        priority: of the streams, as CUDA counts: 0 is the lowest.

    Raises:
        GreenContextError: the driver cannot split this device.
    """

    def __init__(self, device: torch.device, priority: int = 0) -> None:
        self.device, self._priority = device, priority
        self._ordinal = _checked(driver.cuDeviceGet(device.index))
        whole = _checked(driver.cuDeviceGetDevResource(self._ordinal, _SM))
        groups, count, rest = _checked(
            driver.cuDevSmResourceSplitByCount(
                whole.sm.smCount // SMS_PER_UNIT, whole, 0, SMS_PER_UNIT
            )
        )
        if count < 2:
            raise _error(f"the driver makes {count} parts of {whole.sm.smCount} SMs")
        self._parts: list[list[Any]] = [[group] for group in groups[:count]]
        if rest.sm.smCount:
            # By itself it has no room for clusters of 8 blocks: products fail there.
            self._parts[-1].append(rest)
        self.units = SMUnits(
            tuple(sum(part.sm.smCount for part in unit) for unit in self._parts)
        )
        self._streams: dict[SMRange, torch.cuda.ExternalStream] = {}

    def stream(self, units: SMRange) -> torch.cuda.ExternalStream:
        """A stream on a run of units, always the same one; the first call makes it.

        Raises:
            GreenContextError: the driver refused, or gave other SMs.
        """
        if units not in self._streams:
            self._streams[units] = self._make_stream(units)
        return self._streams[units]

    def _make_stream(self, units: SMRange) -> torch.cuda.ExternalStream:
        parts = [*chain.from_iterable(self._parts[units.first : units.last])]
        description = _checked(driver.cuDevResourceGenerateDesc(parts, len(parts)))
        context = _checked(
            driver.cuGreenCtxCreate(
                description,
                self._ordinal,
                driver.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM.value,
            )
        )
        got = _checked(driver.cuGreenCtxGetDevResource(context, _SM)).sm.smCount
        if got != self.units.count(units):
            raise _error(f"{got} SMs instead of {self.units.count(units)}")
        flags = driver.CUstream_flags.CU_STREAM_NON_BLOCKING.value
        raw = _checked(driver.cuGreenCtxStreamCreate(context, flags, self._priority))
        return torch.cuda.ExternalStream(int(raw), device=self.device)


def _checked(result: tuple[Any, ...]) -> Any:
    """The values of a driver call, or its error raised."""
    code, *values = result
    if code != driver.CUresult.CUDA_SUCCESS:
        raise _error(f"the CUDA driver answered {code.name}")
    return values[0] if len(values) == 1 else tuple(values)


def _error(why: str) -> GreenContextError:
    return GreenContextError(
        "Green contexts cannot be used",
        why=why,
        mend="they need driver 550 or newer; or use --sm-partition-backend mps",
    )
