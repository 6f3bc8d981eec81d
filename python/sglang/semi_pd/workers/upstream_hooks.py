# SPDX-License-Identifier: Apache-2.0
"""What resident and workers change in SGLang, and nothing else changes it.

Each ``install_*`` registers its hooks with SGLang's registry, applies them, and refuses
to go on if one of them did not take: a changed SGLang is refused, not half-patched.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sglang.semi_pd.hooks import require_applied
from sglang.semi_pd.resident.memory_plan import GIB, WorkerNeeds, extra_reserve
from sglang.semi_pd.resident.model_image import SharedModelLoader
from sglang.semi_pd.resident.shared_pools import (
    SPARE_ROWS,
    SharedReqToTokenPool,
    Supply,
    SupplyExisting,
    create_buffers,
)
from sglang.semi_pd.utils import InstanceRole
from sglang.semi_pd.workers.leased_allocator import LeasedAllocator, SoleAllocator
from sglang.srt.managers.scheduler_components.pool_stats_observer import PoolStats
from sglang.srt.model_executor.pool_configurator import MemoryPoolConfig
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

if TYPE_CHECKING:
    from sglang.semi_pd.memory.block_table import BlockUsage
    from sglang.semi_pd.workers.resident_memory import ResidentMemory
    from sglang.semi_pd.workers.unified_scheduler import OwnMemory
    from sglang.semi_pd.workers.worker_scheduler import WorkerScheduler

_POOL = "sglang.srt.mem_cache.memory_pool"
_CONFIGURATOR = "sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator"
_CHECKER = (
    "sglang.srt.managers.scheduler_components.invariant_checker"
    ".SchedulerInvariantChecker"
)
_OBSERVER = (
    "sglang.srt.managers.scheduler_components.pool_stats_observer"
    ".SchedulerPoolStatsObserver"
)
STATS_INTERVAL_S = 0.1
"""Upstream asks in every idle iteration; so often need the lock not be taken."""

Hook = Callable[..., Any]


def install_pool_memory(supply: Supply) -> None:
    """Resident and workers: KV buffers come from ``supply``."""

    def create(original: Hook, pool: Any) -> None:
        create_buffers(original, pool, supply)

    _apply(
        HookType.AROUND,
        {
            f"{_POOL}.MHATokenToKVPool._create_buffers_normal": create,
            f"{_POOL}.MLATokenToKVPool._create_buffers": create,
        },
    )


def install_resident(
    supply: Supply, pool_bytes: int | None, needs: WorkerNeeds | None
) -> None:
    """Resident: KV buffers in shared memory, of the size the user asked for, if any.

    Args:
        needs: what the workers take beside the cache; None where memory is the host's.
    """
    install_pool_memory(supply)
    _apply(
        HookType.AROUND,
        {f"{_CONFIGURATOR}._profile_available_bytes": _at_most(pool_bytes, needs)},
    )


def install_worker(
    memory: ResidentMemory, scheduler_class: type[WorkerScheduler]
) -> None:
    """Workers: weights, pools and sizes come from the resident."""
    install_pool_memory(SupplyExisting(memory.manifest.kv_buffers, memory.tensor))
    forwards = scheduler_class.forwards
    _apply(
        HookType.AROUND,
        {
            "sglang.srt.model_loader.loader.get_model_loader": _loader(memory),
            f"{_CONFIGURATOR}._resolve_memory_pool_config": _pool_config(memory),
            f"{_CONFIGURATOR}._build_req_to_token_pool": _row_pool(
                memory, scheduler_class.spec.role
            ),
            f"{_CONFIGURATOR}._build_token_to_kv_pool_allocator": _allocator(memory),
            f"{_CHECKER}._check_all_pools": _pools_are_shared,
            f"{_CHECKER}._check_req_pool": _rows_are_shared,
            f"{_OBSERVER}._get_token_info": _pool_stats(memory),
            "sglang.srt.managers.load_snapshot.shm_path_for": _load_path(
                scheduler_class.spec.load_snapshot_path
            ),
            **scheduler_class.around,
            **(forwards.hooks() if forwards is not None else {}),
        },
    )
    _apply(
        HookType.REPLACE,
        {
            "sglang.srt.managers.scheduler.Scheduler": scheduler_class,
            **scheduler_class.queue_replacement,
        },
    )


def install_unified(
    memory: OwnMemory, scheduler_class: type, pool_bytes: int | None
) -> None:
    """One ordinary scheduler over a block table of its own."""
    _apply(
        HookType.AROUND,
        {
            f"{_CONFIGURATOR}._profile_available_bytes": _at_most(pool_bytes),
            f"{_CONFIGURATOR}._resolve_memory_pool_config": memory.create,
            f"{_CONFIGURATOR}._build_req_to_token_pool": memory.row_pool,
            f"{_CONFIGURATOR}._build_token_to_kv_pool_allocator": _allocator(
                memory, SoleAllocator
            ),
            f"{_CHECKER}._check_all_pools": _pools_are_shared,
            f"{_CHECKER}._check_req_pool": _rows_are_shared,
            f"{_OBSERVER}._get_token_info": _pool_stats(memory),
        },
    )
    _apply(
        HookType.REPLACE,
        {"sglang.srt.managers.scheduler.Scheduler": scheduler_class},
    )


def _apply(kind: HookType, hooks: dict[str, Any]) -> None:
    for target, hook in hooks.items():
        HookRegistry.register(target, hook, kind)
    HookRegistry.apply_hooks()
    require_applied(hooks)


def _at_most(pool_bytes: int | None, needs: WorkerNeeds | None = None) -> Hook:
    def available(
        original: Hook, configurator: Any, pre_model_load_memory: float
    ) -> int:
        profiled = int(original(configurator, pre_model_load_memory))
        if needs is not None:
            fraction = configurator.server_args.mem_fraction_static
            kept = int(pre_model_load_memory * (1 - fraction) * GIB)
            profiled -= extra_reserve(needs, kept)
        return profiled if pool_bytes is None else min(profiled, pool_bytes)

    return available


def _loader(memory: ResidentMemory) -> Hook:
    def get_model_loader(
        original: Hook, load_config: Any, model_config: Any = None
    ) -> Any:
        return SharedModelLoader(load_config, memory.manifest.model, memory.tensor)

    return get_model_loader


def _pool_config(memory: ResidentMemory) -> Hook:
    def resolve(original: Hook, configurator: Any, pre_model_load_memory: int) -> Any:
        sizes = memory.manifest.pool
        return MemoryPoolConfig(
            max_total_num_tokens=sizes.max_total_num_tokens,
            max_running_requests=sizes.max_running_requests,
            mem_fraction_static=sizes.mem_fraction_static,
        )

    return resolve


def _row_pool(memory: ResidentMemory, role: InstanceRole) -> Hook:
    def build(original: Hook, configurator: Any, *, max_num_reqs: int) -> Any:
        rows = memory.tensor(memory.manifest.req_to_token)
        if role is InstanceRole.PREFILL:
            return SharedReqToTokenPool(rows, memory.table, leave=SPARE_ROWS)
        # Decode is handed its rows, and takes one where a request comes back.
        return SharedReqToTokenPool(rows, memory.table, lease=1)

    return build


def _allocator(
    memory: ResidentMemory | OwnMemory, kind: type[LeasedAllocator] = LeasedAllocator
) -> Hook:
    def build(
        original: Hook,
        configurator: Any,
        *,
        sizes: Any,
        token_to_kv_pool: Any,
        **_: Any,
    ) -> Any:
        allocator = kind(
            memory.table,
            size=sizes.max_total_num_tokens,
            page_size=configurator.page_size,
            dtype=configurator.kv_cache_dtype,
            device=configurator.device,
            kvcache=token_to_kv_pool,
        )
        if configurator.forward_stream is not None and configurator.device == "cuda":
            allocator.forward_stream = configurator.forward_stream
        return allocator

    return build


def _load_path(path: str) -> Hook:
    def shm_path_for(original: Hook, ipc_name: str) -> str:
        return path

    return shm_path_for


def _pool_stats(memory: ResidentMemory | OwnMemory) -> Hook:
    """Upstream would count the other worker's pages, and unused ones, as in use."""
    newest: tuple[float, PoolStats] | None = None

    def stats(original: Hook, observer: Any) -> PoolStats:
        nonlocal newest
        now = time.monotonic()
        if newest is None or now - newest[0] > STATS_INTERVAL_S:
            newest = now, _whole_pool(memory.table.usage())
        return newest[1]

    return stats


def _whole_pool(usage: BlockUsage) -> PoolStats:
    """As upstream counts: cached pages, and those held ready, are not in use."""
    cached = sum(usage.cached_by_role.values())
    available = usage.pages_free + sum(usage.leased_by_role.values())
    in_use = max(0, usage.pages_total - available - cached)
    return PoolStats(
        full_num_used=in_use * usage.page_size,
        full_token_usage=in_use / usage.pages_total,
        full_available_size=available * usage.page_size,
        full_evictable_size=cached * usage.page_size,
    )


def _pools_are_shared(
    original: Hook, checker: Any, stats: Any, uncached: int = 0
) -> tuple[bool, list[str]]:
    """Upstream compares one process's pages with the whole pool; the block table's
    audit is the check that holds for two."""
    return False, []


def _rows_are_shared(original: Hook, checker: Any) -> None:
    """See ``_pools_are_shared``."""
