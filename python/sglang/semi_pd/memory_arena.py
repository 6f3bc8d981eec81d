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
from sglang.semi_pd.shared_memory import SharedMemory

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
    """Places tensors in arenas, which it creates as they are needed.

    Lives in the resident only. Tensors are packed into arenas of ``chunk_bytes``; one
    that is larger gets an arena of its own.
    """

    def __init__(self, device: torch.device, *, chunk_bytes: int = 1 << 28) -> None:
        self.arenas: list[MemoryArena] = []
        self._device = device
        self._chunk_bytes = chunk_bytes
        self._open: int | None = None
        self._used = 0

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> TensorRef:
        """Reserve a contiguous tensor; its memory is zero."""
        stride = _contiguous_stride(shape)
        return self._reserve(dtype, shape, stride)

    def place(self, tensor: torch.Tensor) -> TensorRef:
        """Copy ``tensor`` into an arena, keeping its strides."""
        ref = self._reserve(tensor.dtype, tuple(tensor.shape), tuple(tensor.stride()))
        self.tensor(ref).copy_(tensor)
        return ref

    def tensor(self, ref: TensorRef) -> torch.Tensor:
        """This process's view of ``ref``."""
        return view(self.arenas[ref.arena].flat, ref)

    def _reserve(
        self, dtype: torch.dtype, shape: tuple[int, ...], stride: tuple[int, ...]
    ) -> TensorRef:
        ref = TensorRef(0, 0, dtype_name(dtype), shape, stride)
        nbytes = max(ref.extent, 1)
        arena, offset = self._find_room(math.ceil(nbytes / ALIGNMENT) * ALIGNMENT)
        return TensorRef(arena, offset, ref.dtype, shape, stride)

    def _find_room(self, nbytes: int) -> tuple[int, int]:
        if nbytes > self._chunk_bytes:
            return self._add_arena(nbytes), 0
        if self._open is None or self._used + nbytes > self._chunk_bytes:
            self._open, self._used = self._add_arena(self._chunk_bytes), 0
        offset, self._used = self._used, self._used + nbytes
        return self._open, offset

    def _add_arena(self, nbytes: int) -> int:
        self.arenas.append(create_arena(self._device, nbytes))
        return len(self.arenas) - 1


def create_arena(device: torch.device, nbytes: int) -> MemoryArena:
    """An arena on ``device``, zero-filled."""
    if device.type == "cuda":
        from sglang.semi_pd.cuda_ipc import CudaArena

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
        from sglang.semi_pd.cuda_ipc import CudaArena

        return CudaArena.attach(device, handle)
    if fd is None:
        raise ValueError("fd: a host arena needs the descriptor of its memory file")
    arena = HostArena.attach(fd)
    if arena.flat.numel() != handle.nbytes:
        raise ValueError(f"fd: {arena.flat.numel()} bytes, expected {handle.nbytes}")
    return arena


def _contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    stride, step = [], 1
    for extent in reversed(shape):
        stride.append(step)
        step *= extent
    return tuple(reversed(stride))
