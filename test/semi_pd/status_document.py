# SPDX-License-Identifier: Apache-2.0
"""A status document made by the parts that make the server's, without a server."""

from __future__ import annotations

from typing import Any

from sglang.semi_pd.errors import RotationError
from sglang.semi_pd.metrics_aggregator import MetricsAggregator
from sglang.semi_pd.metrics_collector import SemiPDMetricsCollector
from sglang.semi_pd.process_rotation_manager import ProcessRotationManager
from sglang.semi_pd.slo_algorithm import SLOAwareResourceController, SLOConstraints
from sglang.semi_pd.sm_allocation import SMAllocation
from sglang.semi_pd.utils import InstanceRole

TOTAL_BLOCKS = 1000


class ObedientSplit:
    """A mechanism that does what it is told, or fails with ``problem``."""

    can_move = True

    def __init__(self) -> None:
        self.problem = ""

    def apply(self, allocation: SMAllocation) -> None:
        if self.problem:
            raise RotationError(self.problem)


class Parts:
    """What a coordinator asks for its status, on a clock that tests move."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.mechanism = ObedientSplit()
        self.rotation = ProcessRotationManager(
            self.mechanism, SMAllocation(70, 30), allow_overlap=False
        )
        self.collector = SemiPDMetricsCollector(30.0, clock=self.clock)
        self.aggregator = MetricsAggregator(self.collector, clock=self.clock)
        self.controller = SLOAwareResourceController(
            SLOConstraints(ttft_target_ms=100.0, tpot_target_ms=50.0),
            self.collector,
            self.rotation,
            clock=self.clock,
        )
        self.taken_blocks = {"leased": 0, "running": 0, "cached": 0}
        self.generation = 1
        self.worker_deaths = 0
        self.is_running = True

    def clock(self) -> float:
        return self.now_s

    def serve(self, count: int, *, ttft_ms: float, tpot_ms: float) -> None:
        """``count`` requests of 100 tokens in, 11 out, with these latencies."""
        for number in range(count):
            rid = f"{self.now_s}-{number}"
            start_s = self.now_s
            first_s = start_s + ttft_ms / 1e3
            end_s = first_s + 10 * tpot_ms / 1e3
            self.collector.record_request_arrival(rid, 100, now=start_s)
            self.collector.record_first_token(rid, now=first_s)
            self.collector.record_request_completion(rid, 11, now=end_s)
        self.now_s += 10.0

    def report(self, role: InstanceRole, queue_length: int) -> None:
        """A worker says how many requests wait for it."""
        self.aggregator.set_worker_metrics(role, {"queue_length": queue_length})

    def status(self) -> dict[str, Any]:
        """The document, with the keys that ``SemiPDCoordinator.get_status`` gives."""
        used = sum(self.taken_blocks.values())
        return {
            "is_running": self.is_running,
            "components": {
                f"{role}_TP0": {
                    "pid": 100 + place,
                    "generation": self.generation,
                    "is_alive": self.is_running,
                }
                for place, role in enumerate(("resident", "prefill", "decode"))
            },
            "partition_backend": "none",
            "process_rotation_status": {
                **self.rotation.get_status(),
                "generation": self.generation,
            },
            "recovery_status": {"worker_deaths": self.worker_deaths},
            "unified_memory_status": {
                "memory_usage": {
                    "total_memory_bytes": TOTAL_BLOCKS * 4096,
                    "allocated_memory_bytes": used * 4096,
                    "utilization_ratio": used / TOTAL_BLOCKS,
                    "total_blocks": TOTAL_BLOCKS,
                    "free_blocks": TOTAL_BLOCKS - used,
                    "allocated_blocks": used,
                    "blocks_by_state": {
                        "free": TOTAL_BLOCKS - used,
                        **self.taken_blocks,
                    },
                }
            },
            "slo_controller_status": self.controller.get_status(),
            "metrics": self.aggregator.get_aggregated_metrics(),
        }
