# SPDX-License-Identifier: Apache-2.0
"""The history of an instance: samples, what counts as an event, how much stays."""

from __future__ import annotations

import json
import time
import tracemalloc

import pytest
from sglang.semi_pd.monitoring import history as module
from sglang.semi_pd.monitoring.history import History
from sglang.semi_pd.monitoring.instance_view import InstanceView
from sglang.semi_pd.sm_allocation import SMAllocation
from status_document import Parts


@pytest.fixture
def parts() -> Parts:
    return Parts()


@pytest.fixture
def history(parts: Parts) -> History:
    return History(
        lambda: InstanceView.from_status(parts.status()), clock=lambda: parts.now_s
    )


def kinds(history: History) -> list[str]:
    return [event["kind"] for event in history.since()["events"]]


def newest(history: History) -> dict[str, object]:
    document = history.since()
    return dict(zip(document["columns"], document["rows"][-1], strict=True))


def test_a_sample_has_the_figures_of_its_moment(parts: Parts, history: History) -> None:
    history.take()
    assert newest(history)["ttft_p95_ms"] is None
    parts.serve(20, ttft_ms=80, tpot_ms=20)
    parts.taken_blocks["running"] = 30
    parts.rotation.request_sm_reallocation(SMAllocation(60, 40))
    history.take()
    figures = newest(history)
    assert figures["ttft_p95_ms"] == pytest.approx(80)
    assert figures["tpot_p50_ms"] == pytest.approx(20)
    assert (figures["asked_prefill"], figures["asked_decode"]) == (60, 40)
    assert (figures["kv_running"], figures["kv_free"]) == (30, 970)
    assert figures["at_s"] == parts.now_s


def test_what_happened_between_two_samples(parts: Parts, history: History) -> None:
    history.take()
    history.take()
    assert kinds(history) == []
    parts.rotation.request_sm_reallocation(SMAllocation(60, 40))
    history.take()
    parts.mechanism.problem = "the worker is busy"
    parts.rotation.request_sm_reallocation(SMAllocation(50, 50))
    history.take()
    parts.generation, parts.worker_deaths = 2, 1
    history.take()
    assert kinds(history) == ["split", "refused", "rotation", "death"]
    texts = [event["text"] for event in history.since()["events"]]
    assert texts[0] == "The split moved from 70/30 to 60/40"
    assert "the worker is busy" in texts[1]
    assert texts[3] == "1 worker died"


def test_an_episode_of_violation_begins_and_ends(
    parts: Parts, history: History
) -> None:
    history.take()
    parts.serve(20, ttft_ms=140, tpot_ms=20)
    parts.controller.tick()
    history.take()
    assert kinds(history) == ["violation"]
    assert "TTFT P95 140.0 ms, target 100 ms" in history.since()["events"][0]["text"]
    parts.now_s += 60
    parts.serve(20, ttft_ms=50, tpot_ms=20)
    parts.controller.tick()
    history.take()
    assert kinds(history)[-1] == "met"


def test_only_what_is_new_is_sent(parts: Parts, history: History) -> None:
    history.take()
    first = history.since()
    history.take()
    parts.rotation.request_sm_reallocation(SMAllocation(60, 40))
    history.take()
    later = history.since(first["next"])
    assert len(later["rows"]) == 2
    assert [event["kind"] for event in later["events"]] == ["split"]
    assert history.since(later["next"])["rows"] == []
    json.dumps(later, allow_nan=False)


def test_memory_stays_bounded(parts: Parts, history: History) -> None:
    status = parts.status()
    view = InstanceView.from_status(status)
    moved = dict(status["process_rotation_status"])
    moved["current_sm_allocation"] = SMAllocation(60, 40).as_dict()
    other = InstanceView.from_status({**status, "process_rotation_status": moved})
    views = [view, other]
    bounded = History(lambda: views[parts.generation % 2], clock=lambda: parts.now_s)

    def take(count: int) -> int:
        for _ in range(count):
            parts.generation += 1
            bounded.take()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        full = take(module.LENGTH)
        assert take(3 * module.LENGTH) < 1.2 * full < 4_000_000
    finally:
        tracemalloc.stop()
    document = bounded.since()
    assert len(document["rows"]) == module.LENGTH
    assert len(document["events"]) == module.EVENTS


def test_the_thread_samples_survives_a_bad_sample_and_ends(
    parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    attempts = []

    def observe() -> InstanceView:
        attempts.append(1)
        if len(attempts) == 1:
            raise RuntimeError("the table is gone")
        return InstanceView.from_status(parts.status())

    history = History(observe, interval_s=0.01)
    history.start()
    history.start()
    deadline = time.monotonic() + 10
    while not history.since()["rows"] and time.monotonic() < deadline:
        time.sleep(0.01)
    history.stop()
    assert history.since()["rows"]
    assert "the table is gone" in caplog.text
    taken = len(attempts)
    time.sleep(0.05)
    assert len(attempts) == taken


def test_a_sample_is_cheap(parts: Parts, history: History) -> None:
    parts.serve(2000, ttft_ms=80, tpot_ms=20)
    history.take()
    started_s = time.process_time()
    for _ in range(20):
        history.take()
    took_ms = 1e3 * (time.process_time() - started_s) / 20
    print(f"one sample over 2000 requests: {took_ms:.2f} ms")
    assert took_ms < 20
