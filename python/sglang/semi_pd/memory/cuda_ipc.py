# SPDX-License-Identifier: Apache-2.0
"""GPU memory shared between processes by legacy CUDA IPC. The only file that knows it.

Legacy handles, not file descriptors of the virtual memory API: measured on an H200,
they open in a tenth of a millisecond for a gigabyte, work between a process outside MPS
and MPS clients of any percentage, and the mapped memory runs at local speed, if the
allocation is whole pages. The exporter must outlive the importers, which is what the
resident is for.
"""

from __future__ import annotations

import torch
from cuda.bindings import runtime as cudart
from sglang.semi_pd.errors import SemiPDError
from sglang.semi_pd.memory.memory_arena import ArenaHandle

PAGE_BYTES = 2 << 20
"""Every allocation is a multiple of this. One that is not takes another process 6 ms a
gigabyte to open, and matrix products there read it at half the speed (decision 10)."""


class CudaError(SemiPDError):
    """A CUDA runtime call failed."""


class CudaArena:
    """One ``cudaMalloc`` of whole pages, outside torch's caching allocator."""

    def __init__(self, device: torch.device, pointer: int, nbytes: int) -> None:
        self._pointer, self._nbytes = pointer, nbytes
        with torch.cuda.device(device):
            self.flat = torch.as_tensor(_DevicePointer(pointer, nbytes), device=device)

    @classmethod
    def create(cls, device: torch.device, nbytes: int) -> CudaArena:
        allocated = allocation_bytes(nbytes)
        with torch.cuda.device(device):
            pointer = int(_call(cudart.cudaMalloc, allocated))
            _call(cudart.cudaMemset, pointer, 0, allocated)
        return cls(device, pointer, nbytes)

    @classmethod
    def attach(cls, device: torch.device, handle: ArenaHandle) -> CudaArena:
        if handle.cuda_ipc is None:
            raise ValueError("handle: not a CUDA arena")
        ipc = cudart.cudaIpcMemHandle_t()
        ipc.reserved = handle.cuda_ipc
        with torch.cuda.device(device):
            torch.cuda.current_stream()  # the primary context must exist first
            pointer = int(
                _call(
                    cudart.cudaIpcOpenMemHandle,
                    ipc,
                    cudart.cudaIpcMemLazyEnablePeerAccess,
                )
            )
        return cls(device, pointer, handle.nbytes)

    def handle(self) -> ArenaHandle:
        ipc = _call(cudart.cudaIpcGetMemHandle, self._pointer)
        return ArenaHandle(self._nbytes, bytes(ipc.reserved))

    def fileno(self) -> int | None:
        return None


def allocation_bytes(nbytes: int) -> int:
    """``nbytes`` rounded up to whole pages."""
    return -(-nbytes // PAGE_BYTES) * PAGE_BYTES


class _DevicePointer:
    """Raw device memory in the form ``torch.as_tensor`` wraps without copying."""

    def __init__(self, pointer: int, nbytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (pointer, False),
            "strides": None,
            "version": 3,
        }


def _call(function, *args):  # type: ignore[no-untyped-def]
    error, *values = function(*args)
    if error != cudart.cudaError_t.cudaSuccess:
        _, name = cudart.cudaGetErrorName(error)
        raise CudaError(
            f"{function.__name__} failed: {name.decode()}",
            why="the GPU refused the call, or an earlier kernel had already failed",
            mend="see the resident's log; a restart of the server clears the GPU",
        )
    return values[0] if values else None
