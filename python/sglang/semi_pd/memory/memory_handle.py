# SPDX-License-Identifier: Apache-2.0
"""What one process gives another, so that both use one pool of KV cache blocks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from sglang.semi_pd.memory.block_table import WorkerLease
from sglang.semi_pd.memory.memory_arena import ArenaHandle


@dataclass(frozen=True, slots=True)
class MemoryHandle:
    """All that another process of the same user needs to attach; plain values only.

    The descriptors are those of process ``pid``, which must be alive when the other
    attaches. A receiver that got descriptors of its own (``socket.send_fds``) sets
    ``pid`` to None and the three numbers to its own. Whoever has this can read and
    write the KV cache: treat it as a secret.
    """

    pid: int | None
    table_fd: int
    index_fd: int
    arena_fd: int | None
    arena: ArenaHandle
    token: int
    leases: tuple[WorkerLease, ...]
    block_size: int
    device: str

    @contextmanager
    def descriptors(self) -> Iterator[tuple[int, int, int | None]]:
        """Those of table, index and arena in this process, for as long as it lasts.

        Raises:
            OSError: process ``pid`` is gone or belongs to another user.
        """
        if self.pid is None:
            yield self.table_fd, self.index_fd, self.arena_fd
            return
        with ExitStack() as opened:

            def reopen(fd: int) -> int:
                path = f"/proc/{self.pid}/fd/{fd}"
                own = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                opened.callback(os.close, own)
                return own

            arena_fd = None if self.arena_fd is None else reopen(self.arena_fd)
            yield reopen(self.table_fd), reopen(self.index_fd), arena_fd
