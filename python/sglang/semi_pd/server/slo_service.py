# SPDX-License-Identifier: Apache-2.0
"""The SLO controller as part of a server: its collector, its limits, its status."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglang.semi_pd.control.control_pace import ControlPace
from sglang.semi_pd.control.split_offer import SplitOffer, default_splits, in_order
from sglang.semi_pd.errors import ConfigError
from sglang.semi_pd.metrics_aggregator import MetricsAggregator
from sglang.semi_pd.server.client_metrics import ClientMetrics
from sglang.semi_pd.simulation.simulator_coefficients import SimulatorCoefficients
from sglang.semi_pd.slo_algorithm import (
    ControlLimits,
    ControlMode,
    SLOAwareResourceController,
    SLOConstraints,
)
from sglang.semi_pd.sm_allocation import FULL_PERCENTAGE, LEAST_PERCENTAGE

if TYPE_CHECKING:
    from sglang.semi_pd.config import SemiPDConfig
    from sglang.semi_pd.process_rotation_manager import ProcessRotationManager


OFF = "off"
_MOVING = (ControlMode.FOLLOW.value, ControlMode.AUTO.value)


@dataclass(frozen=True, slots=True)
class ControlChange:
    """What an operator wants of a running controller; None leaves it as it is.

    Args:
        mode: ``off`` or a ``ControlMode``.
        ttft_target_ms: milliseconds.
        tpot_target_ms: milliseconds.
    """

    mode: str | None = None
    ttft_target_ms: float | None = None
    tpot_target_ms: float | None = None


class SLOService:
    """Collects what clients see; moves the split where the configuration asks for it.

    Where the split cannot move, the controller only advises.
    """

    def __init__(self, config: SemiPDConfig, rotation: ProcessRotationManager) -> None:
        self._config, self._rotation = config, rotation
        self.clients = ClientMetrics(config.slo_window_s)
        self.aggregator = MetricsAggregator(self.clients.collector)
        self._one_change = threading.Lock()
        pace, limits = self._rhythm(ControlMode(config.slo_mode))
        log = config.slo_decision_log
        self._controller = SLOAwareResourceController(
            SLOConstraints(config.slo_ttft_target_ms, config.slo_tpot_target_ms),
            self.clients.collector,
            rotation,
            limits=limits,
            monitoring_interval_s=pace.interval_s,
            decision_log=Path(log) if log is not None else None,
        )

    def start(self) -> None:
        """Start to watch, if the configuration asks for it.

        What can move the split is known only now: the GPU was tried at the start.
        """
        self._adopt(ControlMode(self._config.slo_mode))
        if self._config.moves_split:
            self._controller.start_monitoring()

    def stop(self) -> None:
        """Stop watching; the split stays as it is."""
        self._controller.stop_monitoring()

    def change(self, change: ControlChange) -> None:
        """Pursue other targets, or in another mode, from the next look on.

        Raises:
            ConfigError: the split cannot move, so the controller can only advise.
        """
        if change.mode in _MOVING and not self._rotation.can_move:
            raise ConfigError(
                f"the controller cannot {change.mode}",
                why="the split of this server does not move",
                mend="use the mode advise, or start with another partition backend",
            )
        with self._one_change:
            self._controller.slo_constraints = self._targets(change)
            if change.mode == OFF:
                self._controller.stop_monitoring()
            elif change.mode is not None:
                self._adopt(ControlMode(change.mode))
                self._controller.start_monitoring()

    def get_status(self) -> dict[str, Any]:
        """The controller's state and counters."""
        return self._controller.get_status()

    def _targets(self, change: ControlChange) -> SLOConstraints:
        targets = {
            name: value
            for name in ("ttft_target_ms", "tpot_target_ms")
            if (value := getattr(change, name)) is not None
        }
        return replace(self._controller.slo_constraints, **targets)

    def _adopt(self, mode: ControlMode) -> None:
        pace, limits = self._rhythm(mode)
        self._controller.set_rhythm(limits, pace.interval_s)

    def _rhythm(self, mode: ControlMode) -> tuple[ControlPace, ControlLimits]:
        """How often to look, and the limits of what may be done."""
        config, rotation = self._config, self._rotation
        offers = _offers(config, rotation)
        pace = ControlPace.for_move(
            rotation.move_cost_s,
            interval_s=config.slo_monitoring_interval_s,
            window_s=config.slo_window_s,
            speeds_are_known=any(offer.speeds is not None for offer in offers),
        )
        overlap = config.overlap_allowed
        return pace, pace.limits(
            mode=mode if rotation.can_move else ControlMode.ADVISE,
            allow_overlap=overlap,
            max_percentage=FULL_PERCENTAGE - (0 if overlap else LEAST_PERCENTAGE),
            offers=offers,
        )


def _offers(
    config: SemiPDConfig, rotation: ProcessRotationManager
) -> tuple[SplitOffer, ...]:
    """The splits to choose from, with their speeds where a calibration has them.

    Raises:
        ConfigError: the calibration cannot be read.
    """
    splits = in_order(
        split
        for split in rotation.offered_splits
        if config.overlap_allowed or split.is_unpartitioned or not split.is_overlapping
    )
    if config.slo_calibration is None:
        return tuple(SplitOffer(split) for split in splits)
    coefficients = SimulatorCoefficients.load(Path(config.slo_calibration))
    return coefficients.offers(
        splits or default_splits(overlap_allowed=config.overlap_allowed)
    )
