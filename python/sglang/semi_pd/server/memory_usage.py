# SPDX-License-Identifier: Apache-2.0
"""What an operator is told about the KV memory, as plain values."""

from __future__ import annotations

from typing import Any

from sglang.semi_pd.memory.block_table_reports import BlockUsage

STATES = ("free", "leased", "running", "cached")
"""Every block is in one: nobody's; held ready by a worker; a request's; or in the
prefix cache and in no request's use."""


def blocks_by_state(usage: BlockUsage) -> dict[str, int]:
    """Blocks in each of ``STATES``; they add up to all blocks."""
    leased = sum(usage.leased_by_role.values())
    cached = sum(usage.cached_by_role.values())
    running = max(0, usage.pages_used - leased - cached)
    return dict(zip(STATES, (usage.pages_free, leased, running, cached), strict=True))


def describe(usage: BlockUsage, block_bytes: int) -> dict[str, Any]:
    """Bytes, blocks by state and role, rows, lock and audits."""
    return {
        "total_memory_bytes": usage.pages_total * block_bytes,
        "allocated_memory_bytes": usage.pages_used * block_bytes,
        "utilization_ratio": usage.pages_used / usage.pages_total,
        "total_blocks": usage.pages_total,
        "allocated_blocks": usage.pages_used,
        "free_blocks": usage.pages_free,
        "peak_blocks": usage.pages_peak,
        "blocks_by_state": blocks_by_state(usage),
        "blocks_by_role": dict(usage.pages_by_role),
        "leased_by_role": dict(usage.leased_by_role),
        "running_by_role": usage.running_by_role,
        "cached_by_role": dict(usage.cached_by_role),
        "borrowed_blocks": usage.borrows,
        "allocated_rows": usage.rows_total - usage.rows_free,
        "total_rows": usage.rows_total,
        "lock_waits": usage.lock_waits,
        "lock_wait_total_ms": usage.lock_wait_total_ns / 1e6,
        "lock_wait_max_us": usage.lock_wait_max_ns / 1000,
        "lock_recoveries": usage.lock_recoveries,
        "audits_run": usage.audits_run,
        "audits_failed": usage.audits_failed,
    }
