# SPDX-License-Identifier: Apache-2.0
"""A worker's view of the resident: the mapped arenas and the block table."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from sglang.semi_pd.memory.block_table import BlockTable, WorkerLease
from sglang.semi_pd.memory.memory_arena import (
    MemoryArena,
    TensorRef,
    attach_arena,
    view,
)
from sglang.semi_pd.resident.resident_channel import AttachRequest, Manifest, attach
from sglang.semi_pd.utils import InstanceRole

ATTACH_TIMEOUT_S = 1800.0
"""A resident that loads a very large model takes long; its death is noticed sooner."""


class ResidentMemory:
    """Weights, KV cache, request rows and block table, mapped into this process."""

    def __init__(
        self, manifest: Manifest, table: BlockTable, arenas: list[MemoryArena]
    ) -> None:
        self.manifest = manifest
        self.table = table
        self._arenas = arenas

    @classmethod
    def attach(
        cls,
        socket_path: Path,
        *,
        role: InstanceRole,
        generation: int,
        device: torch.device,
    ) -> ResidentMemory:
        """Wait for the resident, register as a worker, and map its memory.

        Raises:
            WorkerStartError: the resident did not come up, or refused.
        """
        request = AttachRequest(role, generation)
        manifest, fds = attach(socket_path, request, timeout_s=ATTACH_TIMEOUT_S)
        lease = WorkerLease(manifest.slot, manifest.epoch, role, generation)
        table_fd, *arena_fds = fds
        table = BlockTable.attach(table_fd, lease=lease)
        spare = iter(arena_fds)
        arenas = [
            attach_arena(device, handle, None if handle.cuda_ipc else next(spare))
            for handle in manifest.arenas
        ]
        for fd in fds:
            os.close(fd)
        return cls(manifest, table, arenas)

    def tensor(self, ref: TensorRef) -> torch.Tensor:
        """The tensor a reference names, in this process."""
        return view(self._arenas[ref.arena].flat, ref)
