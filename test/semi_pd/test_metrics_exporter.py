# SPDX-License-Identifier: Apache-2.0
"""What Prometheus reads: the instance's own metrics, and SGLang's without the dead."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sglang.semi_pd.monitoring.instance_view import InstanceView
from sglang.semi_pd.monitoring.metrics_exporter import FAMILIES, InstanceMetrics
from sglang.semi_pd.monitoring.process_metrics import ProcessMetrics
from sglang.semi_pd.sm_allocation import SMAllocation
from sglang.semi_pd.utils import InstanceRole
from status_document import Parts

LABELS = {"model_name": "tiny", "engine_type": "unified"}
PREFIX = "sglang:semi_pd_"

# What a worker process does, in short: counts, times and measures, then stays or ends.
WORKER = """
import sys
from prometheus_client import Counter, Gauge, Histogram
count, level = float(sys.argv[1]), float(sys.argv[2])
labels = {"role": sys.argv[3]}
Counter("t:done", "d", labels).labels(**labels).inc(count)
Histogram("t:took", "d", labels, buckets=(1, 2)).labels(**labels).observe(count)
gauge = Gauge("t:level", "d", labels, multiprocess_mode="mostrecent")
gauge.labels(**labels).set(level)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def parts() -> Parts:
    return Parts()


@pytest.fixture
def registry(parts: Parts) -> CollectorRegistry:
    registry = CollectorRegistry()
    view = lambda: InstanceView.from_status(parts.status())  # noqa: E731
    registry.register(InstanceMetrics(view, LABELS))
    return registry


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(PREFIX + name, LABELS | labels)


def test_every_family_has_a_sample_and_names_follow_the_conventions(
    parts: Parts, registry: CollectorRegistry
) -> None:
    parts.serve(20, ttft_ms=80, tpot_ms=20)
    parts.controller.tick()
    text = generate_latest(registry).decode()
    found = {one.name: one for one in text_string_to_metric_families(text)}
    for family in FAMILIES:
        metric = found[family.full_name.removesuffix("_total")]
        assert metric.type == ("counter" if family.is_counter else "gauge")
        assert re.fullmatch(r"sglang:semi_pd_[a-z_]+", family.full_name)
        if family.name != "sm_share_realised_ratio":
            assert metric.samples, family.name
        for sample in metric.samples:
            own = {family.label} - {""}
            assert sample.labels.keys() == LABELS.keys() | own


def test_split_and_moves(parts: Parts, registry: CollectorRegistry) -> None:
    parts.rotation.request_sm_reallocation(SMAllocation(60, 40))
    parts.mechanism.problem = "no"
    parts.rotation.request_sm_reallocation(SMAllocation(50, 50))
    assert value(registry, "sm_share_ratio", role="prefill") == 0.6
    assert value(registry, "sm_share_ratio", role="decode") == 0.4
    assert value(registry, "rotations_total", result="done") == 1
    assert value(registry, "rotations_total", result="failed") == 1
    assert value(registry, "sm_share_realised_ratio", role="prefill") is None


def test_latencies_are_seconds_and_unknown_without_samples(
    parts: Parts, registry: CollectorRegistry
) -> None:
    empty = value(registry, "ttft_seconds", quantile="0.95")
    assert empty is not None and math.isnan(empty)
    parts.serve(20, ttft_ms=80, tpot_ms=20)
    assert value(registry, "ttft_seconds", quantile="0.5") == pytest.approx(0.080)
    assert value(registry, "tpot_seconds", quantile="0.99") == pytest.approx(0.020)
    assert value(registry, "slo_target_seconds", latency="ttft") == 0.1
    assert value(registry, "slo_target_seconds", latency="tpot") == 0.05


def test_control_queues_blocks_and_workers(
    parts: Parts, registry: CollectorRegistry
) -> None:
    parts.serve(20, ttft_ms=300, tpot_ms=20)
    decision = parts.controller.tick()
    parts.report(InstanceRole.PREFILL, 7)
    parts.taken_blocks["running"] = 250
    parts.worker_deaths = 2
    assert value(registry, "slo_violated") == 1
    assert value(registry, "slo_violations_total") == 1
    assert value(registry, "decisions_total", reason=decision.reason.value) == 1
    assert value(registry, "queue_requests", role="prefill") == 7
    assert value(registry, "kv_blocks", state="free") == 750
    assert value(registry, "kv_blocks", state="running") == 250
    assert value(registry, "worker_deaths_total") == 2
    assert value(registry, "workers_up", role="prefill") == 1
    parts.is_running = False
    assert value(registry, "workers_up", role="prefill") == 0


class WorkerProcess:
    """A real process that writes metric files, as SGLang's do."""

    def __init__(
        self, directory: Path, *, count: float, level: float, role: str
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(count), str(level), role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(directory)},
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


def scrape(metrics: ProcessMetrics) -> dict[str, float]:
    return {
        sample.name + json.dumps(sample.labels, sort_keys=True): sample.value
        for family in metrics.collect()
        for sample in family.samples
    }


@pytest.mark.parametrize("is_private", [True, False])
def test_the_dead_leave_their_counts_and_nothing_else(
    tmp_path: Path, *, is_private: bool
) -> None:
    metrics = ProcessMetrics(tmp_path, is_private=is_private)
    prefill, decode = '{"role": "prefill"}', '{"role": "decode"}'
    old = WorkerProcess(tmp_path, count=2, level=5, role="prefill")
    other = WorkerProcess(tmp_path, count=1, level=9, role="decode")
    before = scrape(metrics)
    assert before[f"t:level{prefill}"] == 5
    old.end()
    after = scrape(metrics)
    assert f"t:level{prefill}" not in after
    assert after[f"t:level{decode}"] == 9
    counted = {name: v for name, v in before.items() if "level" not in name}
    assert {name: after[name] for name in counted} == counted
    new = WorkerProcess(tmp_path, count=3, level=6, role="prefill")
    later = scrape(metrics)
    assert later[f"t:done_total{prefill}"] == 5
    assert later[f"t:took_count{prefill}"] == 2
    assert later[f"t:took_sum{prefill}"] == 5
    assert later[f"t:level{prefill}"] == 6
    for worker in (new, other):
        worker.end()


def test_a_zombie_is_dead(tmp_path: Path) -> None:
    worker = WorkerProcess(tmp_path, count=1, level=5, role="prefill")
    worker.kill()
    metrics = ProcessMetrics(tmp_path, is_private=True)
    gone = '{"role": "prefill"}'
    for _ in range(1000):
        if f"t:level{gone}" not in scrape(metrics):
            break
    assert f"t:level{gone}" not in scrape(metrics)
    worker.end()


def test_generations_do_not_pile_up_files(tmp_path: Path) -> None:
    metrics = ProcessMetrics(tmp_path, is_private=True)
    for generation in range(5):
        worker = WorkerProcess(tmp_path, count=1, level=generation, role="decode")
        scrape(metrics)
        worker.end()
    assert scrape(metrics)['t:done_total{"role": "decode"}'] == 5
    assert len(list(tmp_path.iterdir())) == 2


def test_a_shared_directory_keeps_its_files(tmp_path: Path) -> None:
    worker = WorkerProcess(tmp_path, count=1, level=1, role="decode")
    worker.end()
    before = sorted(tmp_path.iterdir())
    scrape(ProcessMetrics(tmp_path, is_private=False))
    assert sorted(tmp_path.iterdir()) == before
