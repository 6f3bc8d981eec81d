# SPDX-License-Identifier: Apache-2.0
"""``--enable-unified-memory`` alone: SGLang's one scheduler over a block table.

Nothing is divided: one process computes prompts and answers, with memory of its own.
Its pages and rows are the block table's, so the same manager allocates, audits and
reports as in an instance of two workers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec
import numpy as np
from sglang.semi_pd.config import SemiPDConfig
from sglang.semi_pd.memory.block_table import BlockTable
from sglang.semi_pd.memory.id_pool import Ids
from sglang.semi_pd.resident.shared_pools import SharedReqToTokenPool
from sglang.semi_pd.utils import InstanceRole
from sglang.semi_pd.workers import prefix_tree
from sglang.semi_pd.workers.idle_audit import IdleAudit
from sglang.srt.managers import scheduler as upstream
from sglang.srt.mem_cache.base_prefix_cache import EvictParams

INFO_KEY = "semi_pd_memory"
"""Where the scheduler's first message says how to reach its block table."""


class TableAddress(msgspec.Struct, frozen=True):
    """A block table in another process of this user; ``block_bytes``: all layers'."""

    pid: int
    fd: int
    block_bytes: int

    def attach(self) -> BlockTable:
        """Map the table; the process must live."""
        fd = os.open(f"/proc/{self.pid}/fd/{self.fd}", os.O_RDWR)
        try:
            return BlockTable.attach(fd)
        finally:
            os.close(fd)


class OwnMemory:
    """The block table of this process, made when SGLang has sized its pools."""

    table: BlockTable

    def create(
        self, original: Callable[..., Any], configurator: Any, *args: Any
    ) -> Any:
        """Around SGLang's sizing: make a table of that size."""
        config = original(configurator, *args)
        self.table = BlockTable.create(
            num_pages=config.max_total_num_tokens // configurator.page_size,
            num_rows=config.max_running_requests,
            page_size=configurator.page_size,
        )
        self.table.register_worker(InstanceRole.RESIDENT, 1)
        return config

    def row_pool(
        self, original: Callable[..., Any], configurator: Any, **options: Any
    ) -> SharedReqToTokenPool:
        """SGLang's rows, handed out by the table."""
        return SharedReqToTokenPool(
            original(configurator, **options).req_to_token, self.table
        )


class UnifiedScheduler(upstream.Scheduler):
    """SGLang's scheduler over blocks of a block table.

    Attributes:
        memory: set once per process, before the scheduler is made.
    """

    memory: ClassVar[OwnMemory]

    def init_running_status(self) -> None:
        super().init_running_status()
        self._audit = IdleAudit(self.memory.table, self._known_pages)

    def get_init_info(self) -> dict[str, Any]:
        table = self.memory.table
        pool = self.token_to_kv_pool_allocator.get_kvcache()
        sizes = pool.get_kv_size_bytes()
        total = int(sum(sizes) if isinstance(sizes, tuple) else sizes)
        address = TableAddress(
            os.getpid(), table.fd, total // (table.layout.num_pages + 1)
        )
        return {**super().get_init_info(), INFO_KEY: address}

    def get_next_batch_to_run(self, *args: Any, **options: Any) -> Any:
        plan = super().get_next_batch_to_run(*args, **options)
        allocator = self.token_to_kv_pool_allocator
        self.memory.table.publish_held(
            leased=allocator.leased_pages,
            cached=self.tree_cache.evictable_size() // allocator.page_size,
        )
        return plan

    def on_idle(self) -> None:
        self.token_to_kv_pool_allocator.return_unused()
        self.req_to_token_pool.return_unused()
        if self.is_fully_idle():
            self._audit.when_idle(self.forward_ct)
        super().on_idle()

    def flush_cache(self, empty_cache: bool = True) -> bool:  # noqa: FBT001
        if self.is_fully_idle():
            # Upstream forgets its tree; here each page must be given back.
            tokens = self.tree_cache.evictable_size()
            self.tree_cache.evict(EvictParams(num_tokens=tokens))
        return super().flush_cache(empty_cache)

    def _known_pages(self) -> Ids | None:
        held = self.token_to_kv_pool_allocator.held_pages()
        if held is None:
            return None
        return np.concatenate((held, prefix_tree.cached_pages(self.tree_cache)))


def run_scheduler_process(*args: Any, **options: Any) -> None:
    """In place of SGLang's function of that name, in the process it starts."""
    from sglang.semi_pd.workers.upstream_hooks import install_unified

    server_args, *_ = args
    memory = UnifiedScheduler.memory = OwnMemory()
    pool_bytes = SemiPDConfig.from_server_args(server_args).pool_bytes
    install_unified(memory, UnifiedScheduler, pool_bytes)
    upstream.run_scheduler_process(*args, **options)
