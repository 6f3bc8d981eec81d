# SPDX-License-Identifier: Apache-2.0
"""Batch requests are served alike and do not count against the SLO."""

from __future__ import annotations

from typing import Any

import process_table
import pytest
import requests
from harness import Server

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("needs_semi_pd")]

GREEDY = {"temperature": 0, "max_new_tokens": 4, "ignore_eos": True}
BATCH = {"custom_params": {"slo_class": "batch"}}


def judged(server: Server) -> int:
    """Requests of the last window whose TTFT counts against the SLO."""
    return int(server.get("/semi_pd/status").json()["metrics"]["ttft_samples"])


def post(server: Server, path: str, body: dict[str, Any], **headers: str) -> Any:
    return requests.post(server.url + path, json=body, headers=headers, timeout=60)


def test_batch_requests_do_not_count(semi_pd: Server) -> None:
    prompt = {"input_ids": [5, 6, 7]}
    chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    # Earlier tests' requests leave the window while this one looks.
    assert process_table.wait_until(lambda: judged(semi_pd) == 0, 60.0) is not None
    as_usual = post(semi_pd, "/generate", {**prompt, "sampling_params": GREEDY})
    assert judged(semi_pd) == 1
    replies = [
        post(
            semi_pd,
            "/generate",
            {**prompt, "sampling_params": GREEDY},
            **{"X-SLO-Class": "batch"},
        ),
        post(semi_pd, "/generate", {**prompt, "sampling_params": {**GREEDY, **BATCH}}),
        post(semi_pd, "/v1/chat/completions", {**chat, "max_tokens": 4, **BATCH}),
        post(
            semi_pd,
            "/v1/chat/completions",
            {**chat, "max_tokens": 4},
            **{"X-SLO-Class": "batch"},
        ),
    ]
    assert [reply.status_code for reply in replies] == [200] * 4
    assert judged(semi_pd) == 1
    tokens = [reply.json()["output_ids"] for reply in (as_usual, *replies[:2])]
    assert tokens[0] == tokens[1] == tokens[2]


def test_an_unknown_class_is_answered_400(semi_pd: Server) -> None:
    body = {"input_ids": [5], "sampling_params": GREEDY}
    reply = post(semi_pd, "/generate", body, **{"X-SLO-Class": "urgent"})
    assert reply.status_code == 400
    assert "interactive or batch" in reply.text


def test_custom_params_that_are_no_object_are_answered_400(semi_pd: Server) -> None:
    body = {"input_ids": [5], "sampling_params": {**GREEDY, "custom_params": "batch"}}
    for headers in ({}, {"X-SLO-Class": "batch"}):
        reply = post(semi_pd, "/generate", body, **headers)
        assert reply.status_code == 400
        assert "must be an object" in reply.text
