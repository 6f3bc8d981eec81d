# SPDX-License-Identifier: Apache-2.0
"""The SLO controller as part of a server: its collector, its limits, its status."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sglang.semi_pd.metrics_aggregator import MetricsAggregator
from sglang.semi_pd.metrics_collector import SemiPDMetricsCollector
from sglang.semi_pd.server.client_metrics import ClientMetrics
from sglang.semi_pd.slo_algorithm import (
    ControlLimits,
    ControlMode,
    SLOAwareResourceController,
    SLOConstraints,
)

if TYPE_CHECKING:
    from sglang.semi_pd.config import SemiPDConfig
    from sglang.semi_pd.process_rotation_manager import ProcessRotationManager


class SLOService:
    """Collects what clients see; moves the split where the configuration asks for it.

    Where the split cannot move, the controller only advises.
    """

    def __init__(self, config: SemiPDConfig, rotation: ProcessRotationManager) -> None:
        collector = SemiPDMetricsCollector(window_size_seconds=config.slo_window_s)
        self.clients = ClientMetrics(collector)
        self.aggregator = MetricsAggregator(collector)
        self._moves_split = config.moves_split
        self._controller = SLOAwareResourceController(
            SLOConstraints(config.slo_ttft_target_ms, config.slo_tpot_target_ms),
            collector,
            rotation,
            limits=ControlLimits(
                mode=ControlMode.FOLLOW if rotation.can_move else ControlMode.ADVISE,
                allow_overlap=config.overlap_allowed,
            ),
            monitoring_interval_s=config.slo_monitoring_interval_s,
        )

    def start(self) -> None:
        """Start to watch, if the configuration asks for it."""
        if self._moves_split:
            self._controller.start_monitoring()

    def stop(self) -> None:
        """Stop watching; the split stays as it is."""
        self._controller.stop_monitoring()

    def get_status(self) -> dict[str, Any]:
        """The controller's state and counters."""
        return self._controller.get_status()
