# SPDX-License-Identifier: Apache-2.0
"""Two workers' loads as one, through SGLang's own files; and its routes, all known."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.upstream

POOL = 10_000
CONTROL = (
    "abort", "add_", "api/show", "clear", "close", "configure", "continue", "corpor",
    "count_tokens", "dump", "elastic", "expert", "freeze", "flush", "hicache", "init_",
    "destroy", "load_lora", "unload", "open_", "parse_", "pause", "profile", "release",
    "remote", "remove", "resume", "scale", "separate", "session", "set_", "slow",
    "tokenize", "trace", "update", "weights", "cancel",
)  # fmt: skip
"""Parts of the paths of POST routes on which the model does not work."""


def loads(now: float):  # type: ignore[no-untyped-def]
    """Prefill with a queue, decode with a batch and a request put aside."""
    from sglang.srt.managers import load_snapshot as upstream

    def stages(mode: str, **counts: int) -> upstream.DisaggregationMetrics:
        return upstream.DisaggregationMetrics(mode=mode, **counts)

    prefill = upstream.LoadSnapshot(
        timestamp=now,
        num_running_reqs=2,
        num_waiting_reqs=5,
        num_waiting_uncached_tokens=700,
        num_used_tokens=4000,
        num_total_tokens=5000,
        num_active_tokens=5000,
        max_total_num_tokens=POOL,
        max_running_requests=64,
        token_usage=0.4,
        cache_hit_rate=0.25,
        utilization=-1.0,
        total_prefill_uncached_tokens=90_000,
        total_prefill_busy_us=123,
        memory=upstream.MemoryMetrics(1.5, 2.5, 0.25, POOL),
        disaggregation=stages("prefill", prefill_bootstrap_queue_reqs=1),
        queues=upstream.QueueMetrics(4, 1, 0, 0, 0),
    )
    decode = upstream.LoadSnapshot(
        timestamp=now - 1,
        num_running_reqs=8,
        num_waiting_reqs=3,
        num_used_tokens=3900,
        num_total_tokens=4200,
        num_active_tokens=4200,
        max_total_num_tokens=POOL,
        max_running_requests=64,
        token_usage=0.39,
        gen_throughput=321.0,
        memory=upstream.MemoryMetrics(1.5, 2.5, 0.5, POOL),
        disaggregation=stages("decode", decode_retracted_queue_reqs=2),
        queues=upstream.QueueMetrics(1, 0, 0, 2, 0),
    )
    return prefill, decode


def test_counted_once() -> None:
    """Queues add up, the shared pool is not counted twice."""
    from sglang.semi_pd.server.instance_load import of_instance

    both = of_instance(*loads(1000.0)).to_dict()
    assert both["timestamp"] == 999.0
    assert both["num_running_reqs"] == 10
    assert both["num_waiting_reqs"] == 8
    assert both["num_waiting_uncached_tokens"] == 700
    assert both["num_used_tokens"] == 4000
    assert both["num_total_tokens"] == both["num_active_tokens"] == 4000 + 1000 + 300
    assert both["max_total_num_tokens"] == POOL
    assert both["max_running_requests"] == 64
    assert both["token_usage"] == 0.4
    assert both["gen_throughput"] == 321.0
    assert both["cache_hit_rate"] == 0.25
    assert both["utilization"] == 0.0
    assert both["memory"]["graph_gb"] == 0.75
    assert both["memory"]["weight_gb"] == 1.5
    assert both["disaggregation"]["mode"] == "null"
    assert both["disaggregation"]["prefill_bootstrap_queue_reqs"] == 1
    assert both["disaggregation"]["decode_retracted_queue_reqs"] == 2
    assert both["queues"]["waiting"] == 5
    assert both["queues"]["retracted"] == 2


def test_reader_and_silence(tmp_path: Path) -> None:
    """Nothing before both have spoken; a worker that stops reporting is named."""
    from sglang.semi_pd.server.instance_load import SILENCE_S, InstanceLoadReader
    from sglang.srt.managers.load_snapshot import ShmLoadSnapshotWriter

    reader = InstanceLoadReader(lambda role: str(tmp_path / role.value))
    assert reader.read(0) is None and reader.read_all() == []
    assert reader.silence() is None
    prefill, decode = loads(time.time())
    writers = []
    for name, load in (("prefill", prefill), ("decode", decode)):
        writers.append(ShmLoadSnapshotWriter(str(tmp_path / name), 1, 0))
        assert reader.silence() is None
        writers[-1].write(load)
    [load] = reader.read_all()
    assert load.num_running_reqs == 10
    assert reader.silence() is None
    writers[1].write(loads(time.time() - SILENCE_S - 5)[1])
    silence = reader.silence()
    assert silence is not None and "decode" in silence and "prefill" not in silence
    reader.close()


def test_every_route_of_upstream_is_known() -> None:
    """A route on which the model works, and that the door let by, would be lost in a
    drain: each POST route is a request or a control message."""
    from sglang.semi_pd.server.admission import HEALTH, REQUESTS
    from sglang.srt.entrypoints.http_server import app

    posts = {
        route.path
        for route in app.routes
        if {"POST", "PUT"} & set(getattr(route, "methods", None) or ())
    }
    unknown = {p for p in posts - REQUESTS if not any(part in p for part in CONTROL)}
    assert not unknown
    assert posts >= REQUESTS
    assert {route.path for route in app.routes if hasattr(route, "path")} >= HEALTH
