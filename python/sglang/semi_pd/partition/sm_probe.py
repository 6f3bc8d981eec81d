# SPDX-License-Identifier: Apache-2.0
"""On how many SMs does a stream really run? A kernel that notes ``%smid``.

What was asked for and what is had are two things: a share is rounded, a graph keeps to
the SMs it was captured on, and a stream may have been the wrong one. In an MPS client
the ids count from 0 within the SMs of the context, so they tell how many, not which.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from cuda.bindings import driver
from sglang.semi_pd.errors import SemiPDError

MOST_SMS = 1024
BLOCKS_PER_SM = 2

_KERNEL = b"""
.version 7.0
.target sm_80
.address_size 64
.visible .entry note_sm(.param .u64 noted)
{
  .reg .u32 %sm, %one;
  .reg .u64 %base, %offset;
  ld.param.u64 %base, [noted];
  cvta.to.global.u64 %base, %base;
  mov.u32 %sm, %smid;
  mul.wide.u32 %offset, %sm, 4;
  add.u64 %base, %base, %offset;
  mov.u32 %one, 1;
  st.global.u32 [%base], %one;
  ret;
}
\0"""
"""PTX, so that no compiler is needed; the driver translates it in milliseconds."""


class ProbeError(SemiPDError):
    """The probe kernel cannot be loaded or launched."""


class SMProbe:
    """Asks a stream where it runs, without waiting for the answer.

    One question at a time: ``ask``, and some time later ``answer``.

    Raises:
        ProbeError: the driver does not take the kernel.
    """

    def __init__(self, device: torch.device) -> None:
        library = _checked(
            driver.cuLibraryLoadData(_KERNEL, [], [], 0, [], [], 0)  # no options
        )
        kernel = _checked(driver.cuLibraryGetKernel(library, b"note_sm"))
        self._function = driver.CUfunction(int(kernel))
        visible = torch.cuda.get_device_properties(device).multi_processor_count
        self._blocks = BLOCKS_PER_SM * visible
        self._noted = torch.zeros(MOST_SMS, dtype=torch.int32, device=device)
        self._on_host = torch.zeros(MOST_SMS, dtype=torch.int32, pin_memory=True)
        self._done: torch.cuda.Event | None = None

    @property
    def is_asking(self) -> bool:
        """Whether a question has not been answered yet."""
        return self._done is not None

    def ask(self, stream: torch.cuda.Stream) -> None:
        """Queue the probe behind what ``stream`` has to do.

        Raises:
            ProbeError: the driver refused the launch.
        """
        with torch.cuda.stream(stream):
            self._noted.zero_()
            self._launch(stream)
            self._on_host.copy_(self._noted, non_blocking=True)
            self._done = stream.record_event()

    def answer(self) -> frozenset[int] | None:
        """The ids of the SMs that took part, or None while the stream is not there."""
        if self._done is None or not self._done.query():
            return None
        self._done = None
        return frozenset(torch.nonzero(self._on_host).flatten().tolist())

    def ask_and_wait(self, stream: torch.cuda.Stream) -> frozenset[int]:
        """``ask``, then the answer."""
        self.ask(stream)
        stream.synchronize()
        answer = self.answer()
        assert answer is not None, "the stream has finished"
        return answer

    def _launch(self, stream: torch.cuda.Stream) -> None:
        threads_per_block = 1024  # no more than two blocks fit on an SM
        arguments = ((self._noted.data_ptr(),), (ctypes.c_uint64,))
        grid_and_block = (self._blocks, 1, 1, threads_per_block, 1, 1)
        queue = driver.CUstream(stream.cuda_stream)
        _checked(
            driver.cuLaunchKernel(
                self._function, *grid_and_block, 0, queue, arguments, 0
            )
        )


def _checked(result: tuple[Any, ...]) -> Any:
    code, *values = result
    if code != driver.CUresult.CUDA_SUCCESS:
        raise ProbeError(
            "The SM probe does not work",
            why=f"the CUDA driver answered {code.name}",
            mend="report it with the driver's version",
        )
    return values[0] if values else None
