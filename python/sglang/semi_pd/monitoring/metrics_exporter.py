# SPDX-License-Identifier: Apache-2.0
"""The instance's own Prometheus metrics, ``sglang:semi_pd_*``.

They come out of the main process at each scrape, from the status of that moment. So
none of them is left behind by a worker that ended.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sglang.semi_pd.monitoring.instance_view import ROLES, InstanceView, Latency, Shares

PREFIX = "sglang:semi_pd_"

Sample = tuple[str, float]
"""The value of a family's own label, empty where it has none, and the figure."""


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: its name without the prefix, and how it is read off a view.

    A name that ends in ``_total`` is a counter, any other a gauge.
    """

    name: str
    help: str
    label: str
    read: Callable[[InstanceView], Iterable[Sample]]

    @property
    def full_name(self) -> str:
        """The name that Prometheus sees."""
        return PREFIX + self.name

    @property
    def is_counter(self) -> bool:
        """Whether the figure never falls."""
        return self.name.endswith("_total")


def _shares(shares: Shares | None) -> Iterator[Sample]:
    if shares is not None:
        yield "prefill", shares.prefill / 100
        yield "decode", shares.decode / 100


def _percentiles(latency: Latency) -> Iterator[Sample]:
    for percentile, value_ms in latency.percentiles_ms.items():
        value_s = math.nan if value_ms is None else value_ms / 1000
        yield f"{percentile / 100:g}", value_s


def _targets(view: InstanceView) -> Iterator[Sample]:
    yield "ttft", view.ttft.target_ms / 1000
    yield "tpot", view.tpot.target_ms / 1000


def _workers_up(view: InstanceView) -> Iterator[Sample]:
    for role in ROLES:
        alive = (w.is_alive for w in view.workers if w.name.startswith(f"{role}_"))
        yield role, float(sum(alive))


FAMILIES = (
    Family(
        "sm_share_ratio",
        "Share of the SMs, or of a CPU host's cores, that the split gives to a role.",
        "role",
        lambda view: _shares(view.asked),
    ),
    Family(
        "sm_share_realised_ratio",
        "Share that a role was measured to have; absent where it is not measured.",
        "role",
        lambda view: _shares(view.realised),
    ),
    Family(
        "ttft_seconds",
        "Time to first token over the SLO window, as clients see it.",
        "quantile",
        lambda view: _percentiles(view.ttft),
    ),
    Family(
        "tpot_seconds",
        "Time per output token over the SLO window, as clients see it.",
        "quantile",
        lambda view: _percentiles(view.tpot),
    ),
    Family("slo_target_seconds", "What the operator promises.", "latency", _targets),
    Family(
        "slo_violated",
        "1 while the controller sees an SLO fail, else 0.",
        "",
        lambda view: [("", float(view.control.is_violating))],
    ),
    Family(
        "slo_violations_total",
        "Episodes of a failing SLO.",
        "",
        lambda view: [("", float(view.control.violation_episodes))],
    ),
    Family(
        "kv_blocks",
        "KV cache blocks by state.",
        "state",
        lambda view: view.blocks.by_state.items(),
    ),
    Family(
        "queue_requests",
        "Requests that wait for a role's worker, as it reports them.",
        "role",
        lambda view: [
            ("prefill", view.load.prefill_queue),
            ("decode", view.load.decode_queue),
        ],
    ),
    Family(
        "requests",
        "Requests in the server: waiting for their first token, or decoding.",
        "phase",
        lambda view: [
            ("waiting", view.load.waiting),
            ("decoding", view.load.decoding),
        ],
    ),
    Family(
        "rotations_total",
        "Requests to move the split.",
        "result",
        lambda view: [("done", view.moves.done), ("failed", view.moves.failed)],
    ),
    Family(
        "worker_generation",
        "Generation of the workers that serve.",
        "",
        lambda view: [("", view.moves.generation)],
    ),
    Family("workers_up", "Living workers of a role.", "role", _workers_up),
    Family(
        "worker_deaths_total",
        "Times that both workers were replaced because one died or stood still.",
        "",
        lambda view: [("", view.moves.worker_deaths)],
    ),
    Family(
        "decisions_total",
        "Decisions of the SLO controller by reason.",
        "reason",
        lambda view: view.control.reasons.items(),
    ),
)


class InstanceMetrics(Collector):
    """Exports ``FAMILIES``, each with SGLang's labels and its own.

    Args:
        view: gives the instance as it is now.
        labels: on every metric, such as ``model_name``.
    """

    def __init__(
        self, view: Callable[[], InstanceView], labels: Mapping[str, str]
    ) -> None:
        self._view, self._labels = view, dict(labels)

    def collect(self) -> Iterator[Metric]:
        """One family after the other, all from one view."""
        view = self._view()
        for family in FAMILIES:
            yield self._metric(family, view)

    def _metric(self, family: Family, view: InstanceView) -> Metric:
        kind = CounterMetricFamily if family.is_counter else GaugeMetricFamily
        own = [family.label] if family.label else []
        metric = kind(family.full_name, family.help, labels=[*self._labels, *own])
        for label, value in family.read(view):
            values = [*self._labels.values(), *([label] if own else [])]
            metric.add_metric(values, float(value))
        return metric
