# SPDX-License-Identifier: Apache-2.0
"""Memory that outlives the workers: one owner, any number of processes mapping it.

The resident creates arenas and places tensors in them; workers attach and see the same
physical pages. On a CPU host an arena is a nameless memory file; on an NVIDIA GPU it is
one ``cudaMalloc`` exported by a CUDA IPC handle. Whoever holds a descriptor or a handle
can read and write the memory, so both travel only over the resident's private socket.
"""

from __future__ import annotations

import math
from typing import Protocol

import msgspec
import torch
from sglang.semi_pd.memory.shared_memory import SharedMemory

ALIGNMENT = 256
"""Bytes; what CUDA's own allocator aligns to, and enough for any vector load."""


class ArenaHandle(msgspec.Struct, frozen=True):
    """What another process needs to attach: nothing for a memory file (its descriptor
    travels beside the message), 64 opaque bytes for CUDA IPC."""

    nbytes: int
    cuda_ipc: bytes | None = None


class TensorRef(msgspec.Struct, frozen=True):
    """A tensor inside an arena: ``offset`` in bytes, ``stride`` in elements."""

    arena: int
    offset: int
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def extent(self) -> int:
        """Bytes from the first element to behind the last one."""
        if 0 in self.shape:
            return 0
        last = sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        return (last + 1) * torch_dtype(self.dtype).itemsize


def torch_dtype(name: str) -> torch.dtype:
    """``"bfloat16"`` to ``torch.bfloat16``; raises ValueError for anything else."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype: {name!r} is not a torch dtype")
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.bfloat16`` to ``"bfloat16"``."""
    return str(dtype).removeprefix("torch.")


class MemoryArena(Protocol):
    """A flat stretch of shared memory."""

    flat: torch.Tensor
    """uint8, shape (nbytes,), on the device the memory is on."""

    def handle(self) -> ArenaHandle: ...

    def fileno(self) -> int | None:
        """The descriptor to send beside the handle, if there is one."""


class HostArena:
    """Host memory in a nameless file; the kernel frees it with its last user."""

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory
        self.flat = torch.frombuffer(memory.buffer, dtype=torch.uint8)

    @classmethod
    def create(cls, nbytes: int) -> HostArena:
        return cls(SharedMemory.create("sglang-semi-pd", nbytes))

    @classmethod
    def attach(cls, fd: int) -> HostArena:
        return cls(SharedMemory.attach(fd))

    def handle(self) -> ArenaHandle:
        return ArenaHandle(self._memory.nbytes)

    def fileno(self) -> int | None:
        return self._memory.fd


def view(flat: torch.Tensor, ref: TensorRef) -> torch.Tensor:
    """The tensor ``ref`` names, over the arena's own memory: no copy.

    Raises:
        ValueError: the tensor would not lie inside the arena.
    """
    if ref.offset < 0 or ref.offset + ref.extent > flat.numel():
        raise ValueError(f"ref: {ref} does not lie within {flat.numel()} bytes")
    dtype = torch_dtype(ref.dtype)
    elements = flat[ref.offset : ref.offset + ref.extent].view(dtype)
    return elements.as_strided(ref.shape, ref.stride)


class ArenaBuilder:
    """Places tensors in arenas, each made to measure. Lives in the resident only."""

    def __init__(self, device: torch.device) -> None:
        self.arenas: list[MemoryArena] = []
        self._device = device

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> TensorRef:
        """Reserve a contiguous tensor in an arena of its own; its memory is zero."""
        ref = _packed(0, shape, dtype)
        self._add_arena(ref.extent)
        return msgspec.structs.replace(ref, arena=len(self.arenas) - 1)

    def place_together(self, tensors: list[torch.Tensor]) -> list[TensorRef]:
        """Copy contiguous tensors into one new arena, one behind the other."""
        refs, used = [], 0
        for tensor in tensors:
            ref = _packed(used, tuple(tensor.shape), tensor.dtype)
            refs.append(msgspec.structs.replace(ref, arena=len(self.arenas)))
            used += math.ceil(ref.extent / ALIGNMENT) * ALIGNMENT
        self._add_arena(used)
        for tensor, ref in zip(tensors, refs, strict=True):
            self.tensor(ref).copy_(tensor)
        return refs

    def tensor(self, ref: TensorRef) -> torch.Tensor:
        """This process's view of ``ref``."""
        return view(self.arenas[ref.arena].flat, ref)

    def _add_arena(self, nbytes: int) -> None:
        self.arenas.append(create_arena(self._device, max(nbytes, ALIGNMENT)))


def create_arena(device: torch.device, nbytes: int) -> MemoryArena:
    """An arena on ``device``, zero-filled."""
    if device.type == "cuda":
        from sglang.semi_pd.memory.cuda_ipc import CudaArena

        return CudaArena.create(device, nbytes)
    return HostArena.create(nbytes)


def attach_arena(
    device: torch.device, handle: ArenaHandle, fd: int | None
) -> MemoryArena:
    """Map an arena another process created.

    Raises:
        ValueError: a memory file without a descriptor, or of another size.
    """
    if handle.cuda_ipc is not None:
        from sglang.semi_pd.memory.cuda_ipc import CudaArena

        return CudaArena.attach(device, handle)
    if fd is None:
        raise ValueError("fd: a host arena needs the descriptor of its memory file")
    arena = HostArena.attach(fd)
    if arena.flat.numel() != handle.nbytes:
        raise ValueError(f"fd: {arena.flat.numel()} bytes, expected {handle.nbytes}")
    return arena


def _packed(offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> TensorRef:
    stride, step = [], 1
    for extent in reversed(shape):
        stride.append(step)
        step *= extent
    return TensorRef(0, offset, dtype_name(dtype), shape, tuple(reversed(stride)))
