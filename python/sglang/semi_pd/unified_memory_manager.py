# SPDX-License-Identifier: Apache-2.0
"""One pool of KV cache blocks that prefill and decode allocate from and read in place.

The blocks' memory is an arena (a nameless memory file on a CPU host, CUDA IPC on a
GPU); who has which block is decided by ``RequestBlocks``, across processes.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from sglang.semi_pd.memory.block_table import BlockTable, LayoutMismatchError
from sglang.semi_pd.memory.memory_arena import (
    MemoryArena,
    attach_arena,
    create_arena,
)
from sglang.semi_pd.memory.memory_handle import MemoryHandle
from sglang.semi_pd.memory.request_blocks import RequestBlocks
from sglang.semi_pd.memory.request_index import (
    ALL_LAYERS,
    MAX_REQUEST_ID_BYTES,
    RequestIndex,
)
from sglang.semi_pd.utils import InstanceRole

logger = logging.getLogger(__name__)

_MAX_LAYER = (1 << 31) - 1


class UnifiedMemoryManager:
    """Blocks of KV cache by request and layer, shared by every attached process.

    Args:
        total_blocks: number of blocks.
        block_size: size of one block in bytes.
        page_size: tokens per block, reported only: the pool is bytes to this class.
        device: where the memory is; ``cpu`` or ``cuda``.

    Block ids are 0..total_blocks-1: block ``b`` is bytes ``[b * block_size,
    (b + 1) * block_size)`` of the pool. Each call is atomic across processes. Blocks
    belong to their request until somebody deallocates it, whichever process ends.
    """

    _arena: MemoryArena
    _pool: torch.Tensor  # uint8, shape (total_blocks, block_size)
    _blocks: RequestBlocks
    _closed: bool

    def __init__(
        self,
        total_blocks: int,
        block_size: int,
        page_size: int,
        device: torch.device | str,
    ) -> None:
        _require_int("total_blocks", total_blocks, 1)
        _require_int("block_size", block_size, 1)
        _require_int("page_size", page_size, 1)
        device = _require_device(device)
        arena = create_arena(device, total_blocks * block_size)
        blocks = RequestBlocks.create(num_blocks=total_blocks, page_size=page_size)
        self._set_up(arena, blocks, block_size, device)

    @classmethod
    def attach(cls, handle: MemoryHandle) -> UnifiedMemoryManager:
        """The pool behind ``handle``, as seen from this process.

        Raises:
            LayoutMismatchError: the handle is stale, or of another version.
            OSError: its process is gone or belongs to another user.
        """
        with handle.descriptors() as (table_fd, index_fd, arena_fd):
            table = BlockTable.attach(table_fd)
            if table.token != handle.token:
                raise LayoutMismatchError("this handle is of a pool that is gone")
            index = RequestIndex.attach(index_fd)
            device = _require_device(handle.device)
            arena = attach_arena(device, handle.arena, arena_fd)
        manager = cls.__new__(cls)
        blocks = RequestBlocks(table, index, handle.leases)
        manager._set_up(arena, blocks, handle.block_size, device)
        return manager

    def handle(self) -> MemoryHandle:
        """What another process passes to ``attach``."""
        return MemoryHandle(
            pid=os.getpid(),
            table_fd=self._blocks.table.fd,
            index_fd=self._blocks.index.memory.fd,
            arena_fd=self._arena.fileno(),
            arena=self._arena.handle(),
            token=self._blocks.table.token,
            leases=self._blocks.leases,
            block_size=self._block_size,
            device=str(self._device),
        )

    def allocate_kv_cache_blocks(
        self,
        request_id: str,
        layer_id: int,
        num_blocks: int,
        requester_role: InstanceRole,
    ) -> list[int] | None:
        """Append blocks to a layer of a request, all of them or none.

        Returns the new block ids in order, or None, with a warning in the log, when
        fewer than ``num_blocks`` are free.

        Raises:
            ValueError: naming the argument that is wrong.
        """
        name = _require_request_id(request_id)
        _require_int("layer_id", layer_id, 0, _MAX_LAYER)
        _require_int("num_blocks", num_blocks, 1)
        role = _require_role("requester_role", requester_role)
        pages = self._blocks.allocate(name, layer_id, num_blocks, role)
        if pages is None:
            usage, _ = self._blocks.usage()
            logger.warning(
                "Failed to allocate KV cache blocks: %s asked for %d for layer %d of "
                "request %s, %d of %d are free",
                *(role.value, num_blocks, layer_id, request_id),
                *(usage.pages_free, usage.pages_total),
            )
            return None
        return [page - 1 for page in pages.tolist()]

    def get_block_table_index(self, request_id: str, layer_id: int) -> list[int]:
        """Block ids of a layer of a request, in the order they were allocated.

        Raises:
            ValueError: ``request_id`` has no blocks, or none in ``layer_id``.
        """
        _require_int("layer_id", layer_id, 0, _MAX_LAYER)
        pages = self._blocks.blocks(_require_request_id(request_id), layer_id)
        if pages is None:
            raise ValueError(f"request_id: {request_id!r} has no KV cache blocks")
        if not len(pages):
            raise ValueError(f"layer_id: {request_id!r} has no blocks in {layer_id}")
        return [page - 1 for page in pages.tolist()]

    def access_kv_cache(
        self, request_id: str, layer_id: int, accessor_role: InstanceRole
    ) -> list[torch.Tensor]:
        """The blocks' own memory, one uint8 tensor of shape (block_size,) per block.

        No copy is made: what one process writes, the others read. Ordering a write
        before a read is the callers' business.

        Raises:
            ValueError: as for ``get_block_table_index``, or ``accessor_role`` is wrong.
        """
        _require_role("accessor_role", accessor_role)
        blocks = self.get_block_table_index(request_id, layer_id)
        return [self._pool[block] for block in blocks]

    def deallocate_kv_cache_blocks(
        self, request_id: str, layer_id: int | None = None
    ) -> int:
        """Free a layer of a request, or all of it; returns how many blocks.

        Raises:
            ValueError: ``request_id`` has no blocks (freed twice, or never allocated),
                or none in ``layer_id``.
        """
        layer = ALL_LAYERS
        if layer_id is not None:
            _require_int("layer_id", layer_id, 0, _MAX_LAYER)
            layer = layer_id
        freed = self._blocks.free(_require_request_id(request_id), layer)
        if freed is None:
            raise ValueError(f"request_id: {request_id!r} has no KV cache blocks")
        if not freed:
            raise ValueError(f"layer_id: {request_id!r} has no blocks in {layer_id}")
        return freed

    def get_memory_usage(self) -> dict[str, Any]:
        """How full the pool is: bytes, blocks, requests, and blocks by role."""
        usage, requests = self._blocks.usage()
        return {
            "total_memory_bytes": usage.pages_total * self._block_size,
            "allocated_memory_bytes": usage.pages_used * self._block_size,
            "utilization_ratio": usage.pages_used / usage.pages_total,
            "total_blocks": usage.pages_total,
            "free_blocks": usage.pages_free,
            "allocated_blocks": usage.pages_used,
            "peak_allocated_blocks": usage.pages_peak,
            "requests": requests,
            "blocks_by_role": usage.pages_by_role,
            "block_size": self._block_size,
            "page_size": usage.page_size,
        }

    def close(self) -> None:
        """Use the pool no more; its memory lives while a process or a view has it."""
        if not self._closed:
            self._closed = True
            self._blocks.close()
            del self._pool, self._arena

    def __enter__(self) -> UnifiedMemoryManager:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _set_up(
        self,
        arena: MemoryArena,
        blocks: RequestBlocks,
        block_size: int,
        device: torch.device,
    ) -> None:
        self._closed = False
        self._arena, self._blocks, self._device = arena, blocks, device
        self._block_size = block_size
        self._pool = arena.flat.view(-1, block_size)


def _require_int(name: str, value: int, least: int, most: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name}: need an integer, got {value!r}")
    if value < least or (most is not None and value > most):
        raise ValueError(f"{name}: {value} is out of range, the least is {least}")


def _require_role(name: str, role: InstanceRole) -> InstanceRole:
    if not isinstance(role, InstanceRole):
        raise ValueError(f"{name}: need an InstanceRole, got {role!r}")
    return role


def _require_request_id(request_id: str) -> bytes:
    if not isinstance(request_id, str) or not request_id or "\0" in request_id:
        raise ValueError(f"request_id: need a non-empty string, got {request_id!r}")
    name = request_id.encode()
    if len(name) > MAX_REQUEST_ID_BYTES:
        raise ValueError(
            f"request_id: {len(name)} bytes, the most is {MAX_REQUEST_ID_BYTES}"
        )
    return name


def _require_device(device: torch.device | str) -> torch.device:
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device: {device!r} is not a torch device") from error
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device: {found.type} is neither cpu nor cuda")
    return found
