# SPDX-License-Identifier: Apache-2.0
"""One view over what clients see and what each worker reports about itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from sglang.semi_pd.metrics_collector import SemiPDMetricsCollector
from sglang.semi_pd.utils import InstanceRole

_WORKERS = tuple(role for role in InstanceRole if role.is_worker)


class MetricsAggregator:
    """Merges the collector's window with the newest report of each worker role.

    It lives in the server's main process; before each sample of the history it is
    given what the workers say of their queues. A report older than ``max_age_s`` is not
    shown, so a dead worker does not linger in the figures.
    """

    def __init__(
        self,
        collector: SemiPDMetricsCollector,
        *,
        max_age_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._collector = collector
        self._max_age_s = max_age_s
        self._clock = clock
        self._lock = threading.Lock()
        self._reports: dict[InstanceRole, tuple[float, dict[str, float]]] = {}

    def set_worker_metrics(
        self,
        role: InstanceRole,
        metrics: Mapping[str, float],
        *,
        now: float | None = None,
    ) -> None:
        """Replace a role's report; its ``queue_length`` feeds the collector."""
        if not role.is_worker:
            raise ValueError(f"the {role.value} role reports no step metrics")
        reported_at_s = self._clock() if now is None else now
        with self._lock:
            self._reports[role] = (reported_at_s, dict(metrics))
        self._pass_on_queue_lengths(reported_at_s)

    def get_aggregated_metrics(self, *, now: float | None = None) -> dict[str, float]:
        """Return the collector's figures and every live report, as role_name keys."""
        now = self._clock() if now is None else now
        self._pass_on_queue_lengths(now)
        metrics = self._collector.get_real_time_metrics()
        for role in _WORKERS:
            for name, value in self._live_report(role, now).items():
                metrics[f"{role.value}_{name}"] = value
            metrics[f"{role.value}_is_reporting"] = bool(self._live_report(role, now))
        return metrics

    def _live_report(self, role: InstanceRole, now: float) -> dict[str, float]:
        with self._lock:
            reported_at_s, report = self._reports.get(role, (-1e300, {}))
        return report if now - reported_at_s <= self._max_age_s else {}

    def _pass_on_queue_lengths(self, now: float) -> None:
        self._collector.set_queue_lengths(
            prefill=self._queue_length(InstanceRole.PREFILL, now),
            decode=self._queue_length(InstanceRole.DECODE, now),
        )

    def _queue_length(self, role: InstanceRole, now: float) -> int:
        return int(self._live_report(role, now).get("queue_length", 0))
