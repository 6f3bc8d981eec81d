# SPDX-License-Identifier: Apache-2.0
"""The main process with ``--enable-unified-memory`` alone: what it reports.

SGLang starts its one scheduler as always, only with another function as its entry; the
block table of that scheduler is read from here.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sglang.semi_pd.launch import start_progress, starting
from sglang.semi_pd.server.memory_reader import MemoryReader
from sglang.semi_pd.workers import unified_scheduler
from sglang.semi_pd.workers.unified_scheduler import INFO_KEY, TableAddress

if TYPE_CHECKING:
    from sglang.srt.entrypoints.engine import SchedulerInitResult

STATUS = "/semi_pd/status"


def launch(original: Callable[..., Any]) -> Any:
    """Start one scheduler as ``original`` does, given what that process is to run."""
    result, processes = original(unified_scheduler.run_scheduler_process)
    UnifiedMemoryServer().watch(result)
    return result, processes


class UnifiedMemoryServer:
    """One ordinary server whose scheduler allocates from a block table."""

    def __init__(self) -> None:
        self._memory: MemoryReader | None = None

    def watch(self, result: SchedulerInitResult) -> None:
        """Attach to the table once the scheduler is ready, and add the status route."""
        wait_for_ready = result.wait_for_ready

        def wait_and_attach() -> None:
            wait_for_ready()
            start_progress.end("the scheduler is ready")
            starting.is_over()
            self._attach(result.scheduler_infos[0].pop(INFO_KEY))

        result.wait_for_ready = wait_and_attach
        http_server = sys.modules.get("sglang.srt.entrypoints.http_server")
        if http_server is not None:
            http_server.app.add_api_route(STATUS, self.status, methods=["GET"])

    async def status(self) -> dict[str, Any]:
        """The answer of the status route; the scheduler may hold the table's lock."""
        return await asyncio.to_thread(self.get_status)

    def get_status(self) -> dict[str, Any]:
        """As the coordinator's, as far as it applies to one scheduler."""
        usage = self.get_unified_memory_usage()
        return {
            "is_running": usage is not None,
            "unified_memory_status": {"memory_usage": usage},
        }

    def get_unified_memory_usage(self) -> dict[str, Any] | None:
        """KV memory: total, allocated, and in which state; None before the start."""
        return self._memory.usage() if self._memory else None

    def _attach(self, address: TableAddress) -> None:
        self._memory = MemoryReader(address.attach(), address.block_bytes)
