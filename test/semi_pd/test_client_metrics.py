# SPDX-License-Identifier: Apache-2.0
"""What the main process tells the collector of each request."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from sglang.semi_pd.server import client_metrics
from sglang.semi_pd.server.client_metrics import ClientMetrics


def request(rid: str) -> Any:
    return SimpleNamespace(rid=rid, input_ids=[1] * 100, custom_params=None)


def state(*, finished: bool = False) -> Any:
    return SimpleNamespace(
        finished=finished,
        output_ids=[1, 2, 3],
        obj=SimpleNamespace(stream=True),
        time_stats=SimpleNamespace(
            created_time=1.0, first_token_time=2.0, finished_time=3.0
        ),
    )


def output(*rids: str) -> Any:
    return SimpleNamespace(rids=list(rids), time_stats=[None] * len(rids))


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> ClientMetrics:
    """Sweeps at each output, and takes every request for an interactive one."""
    monkeypatch.setattr(client_metrics, "_SWEEP_S", 0.0)
    interactive = client_metrics.slo_class.SLOClass.INTERACTIVE
    monkeypatch.setattr(client_metrics.slo_class, "of", lambda request: interactive)
    return ClientMetrics(1e9)


def counts(clients: ClientMetrics) -> dict[str, float]:
    metrics = clients.collector.get_real_time_metrics()
    names = ("waiting_requests", "decoding_requests", "aborted_requests", "unknown_ids")
    return {name: metrics[name] for name in names}


def test_a_client_that_went_away_is_forgotten(clients: ClientMetrics) -> None:
    """SGLang drops the state of such a request; while waiting, and while decoding."""
    manager: Any = SimpleNamespace(
        rid_to_state={rid: state() for rid in ("waits", "decodes", "stays")}
    )
    clients.sent(manager, [request(rid) for rid in ("waits", "decodes", "stays")])
    answer = output("decodes", "stays")
    clients.received(answer, clients.states(manager, answer))
    assert counts(clients)["decoding_requests"] == 2
    del manager.rid_to_state["waits"], manager.rid_to_state["decodes"]
    late = output("decodes", "stays")
    clients.received(late, clients.states(manager, late))
    assert counts(clients) == {
        "waiting_requests": 0,
        "decoding_requests": 1,
        "aborted_requests": 2,
        "unknown_ids": 0,
    }
    assert clients.collector.snapshot().waiting_prompt_tokens == 0


def test_one_that_ends_is_no_abort(clients: ClientMetrics) -> None:
    manager: Any = SimpleNamespace(rid_to_state={"ends": state()})
    clients.sent(manager, request("ends"))
    manager.rid_to_state["ends"].finished = True
    answer = output("ends")
    states = clients.states(manager, answer)
    del manager.rid_to_state["ends"]  # as SGLang does while it deals with the output
    clients.received(answer, states)
    assert counts(clients)["aborted_requests"] == 0
    assert clients.collector.snapshot().tpot.count == 1
