# SPDX-License-Identifier: Apache-2.0
"""SGLang's own endpoints answer as they do without Semi-PD."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import client
import process_table
import pytest
import requests
from client import Body
from compare import differences, shape
from harness import Server
from workload import endless, prompt

pytestmark = pytest.mark.server

VOLATILE = {"id", "created", "rid"}
MESSAGES = [
    {"role": "system", "content": "Answer in one word."},
    {"role": "user", "content": "What is the weather like today?"},
]
COMPLETION: Body = {
    "model": "tiny",
    "prompt": "The quick brown fox",
    "temperature": 0,
    "max_tokens": 16,
}
CHAT: Body = {
    "model": "tiny",
    "messages": MESSAGES,
    "temperature": 0,
    "max_tokens": 16,
}
USAGE = {"stream_options": {"include_usage": True}}

OPENAI: dict[str, tuple[str, Body]] = {
    "completion": ("/v1/completions", COMPLETION),
    "completion, echo and logprobs": (
        "/v1/completions",
        {**COMPLETION, "echo": True, "logprobs": 3},
    ),
    "completion, token ids": ("/v1/completions", {**COMPLETION, "prompt": [5, 9, 77]}),
    "completion, two prompts": (
        "/v1/completions",
        {**COMPLETION, "prompt": ["In the morning", "A server"], "n": 2},
    ),
    "completion, stop": ("/v1/completions", {**COMPLETION, "stop": ["e", "a"]}),
    "completion, penalties": (
        "/v1/completions",
        {**COMPLETION, "presence_penalty": 0.5, "frequency_penalty": 0.5},
    ),
    "chat": ("/v1/chat/completions", CHAT),
    "chat, one token": ("/v1/chat/completions", {**CHAT, "max_tokens": 1}),
    "chat, logprobs": (
        "/v1/chat/completions",
        {**CHAT, "logprobs": True, "top_logprobs": 3},
    ),
    "chat, n": ("/v1/chat/completions", {**CHAT, "n": 3}),
    "chat, JSON schema": (
        "/v1/chat/completions",
        {
            **CHAT,
            "max_tokens": 48,
            "response_format": {
                "type": "json_schema",
                "json_schema": {
                    "name": "answer",
                    "schema": {
                        "type": "object",
                        "properties": {"ok": {"type": "boolean"}},
                        "required": ["ok"],
                        "additionalProperties": False,
                    },
                },
            },
        },
    ),
}

SAME_SHAPE = ("/v1/models", "/model_info", "/get_model_info", "/v1/loads", "/get_load")


def without_volatile(value: Any) -> Any:
    """An answer without identities and times."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k not in VOLATILE}
        return {key: without_volatile(one) for key, one in kept.items()}
    if isinstance(value, list):
        return [without_volatile(one) for one in value]
    return value


@pytest.mark.parametrize("name", OPENAI)
def test_openai_answer(plain: Server, semi_pd: Server, name: str) -> None:
    """Text, usage, finish reasons and log-probabilities are the same."""
    path, body = OPENAI[name]
    expected, got = plain.post(path, body), semi_pd.post(path, body)
    assert got.status_code == expected.status_code == 200, got.text[:500]
    found = differences(without_volatile(expected.json()), without_volatile(got.json()))
    assert not found, found[:5]


@pytest.mark.parametrize("name", OPENAI)
def test_openai_stream(plain: Server, semi_pd: Server, name: str) -> None:
    """The streamed answer, put together, is the same; usage comes at the end."""
    path, body = OPENAI[name]
    expected = joined(plain, path, body)
    got = joined(semi_pd, path, body)
    assert expected["usage"] is not None
    assert not differences(expected, got)


def joined(server: Server, path: str, body: Body) -> dict[str, Any]:
    """What a client makes of a stream: one text for each choice, and the usage."""
    request = {**body, "stream": True, **USAGE}

    async def run() -> list[Any]:
        async with client.session() as http:
            return [e async for e in client.events(http, server.url + path, request)]

    texts: dict[str, str] = {}
    finish: dict[str, Any] = {}
    usage = None
    for event in asyncio.run(run()):
        usage = event.get("usage") or usage
        for choice in event["choices"]:
            index = str(choice["index"])
            piece = choice.get("text") or choice.get("delta", {}).get("content") or ""
            texts[index] = texts.get(index, "") + piece
            finish[index] = choice.get("finish_reason") or finish.get(index)
    return {"texts": texts, "finish": finish, "usage": usage}


@pytest.mark.parametrize("path", SAME_SHAPE)
def test_information(plain: Server, semi_pd: Server, path: str) -> None:
    """What the server says about itself has the form it has without Semi-PD."""
    expected, got = plain.get(path), semi_pd.get(path)
    assert got.status_code == expected.status_code == 200, got.text[:300]
    assert not differences(shape(expected.json()), shape(got.json()))


@pytest.mark.parametrize("path", ["/server_info", "/get_server_info"])
def test_server_info(plain: Server, semi_pd: Server, path: str) -> None:
    """Every field of plain SGLang's answer is there."""
    expected, got = plain.get(path), semi_pd.get(path)
    assert got.status_code == expected.status_code == 200, got.text[:300]
    missing = sorted(expected.json().keys() - got.json().keys())
    assert not missing


@pytest.mark.parametrize("path", ["/health", "/health_generate", "/ping"])
def test_health(semi_pd: Server, path: str) -> None:
    """Healthy when idle, again and again."""
    for _ in range(3):
        start = time.monotonic()
        assert semi_pd.get(path).status_code == 200
        assert time.monotonic() - start < 5


def test_health_while_busy(semi_pd: Server) -> None:
    """A busy server is healthy as well, and loses nothing over it, no row either."""
    bodies = [endless(prompt(200, seed=n), 60) for n in range(6)]

    async def run() -> tuple[list[client.Stream], list[int]]:
        async with client.session() as http:
            streams = [client.stream(http, semi_pd.url, body) for body in bodies]
            running = asyncio.gather(*streams)
            states = []
            for path in ("/health", "/health_generate") * 2:
                async with http.get(semi_pd.url + path) as reply:
                    states.append(reply.status)
            return await running, states

    streams, states = asyncio.run(run())
    assert states == [200] * 4
    assert all(len(one.last["output_ids"]) == 60 for one in streams)
    settled = process_table.wait_until(
        lambda: semi_pd.memory_usage()["allocated_rows"] == 0, 15
    )
    assert settled is not None, semi_pd.memory_usage()


def test_metrics(plain: Server, semi_pd: Server) -> None:
    """Every metric that plain SGLang has after the same requests, and they count."""
    counter = "sglang:generation_tokens_total"
    before = metric(semi_pd, counter)
    for server in (plain, semi_pd):
        server.generate(**endless(prompt(30, seed=4), 20))
    grown = process_table.wait_until(
        lambda: metric(semi_pd, counter) >= before + 20, 15
    )
    assert grown is not None, f"{counter}: {before}, then {metric(semi_pd, counter)}"
    missing = sorted(metric_names(plain) - metric_names(semi_pd))
    print(f"{len(metric_names(plain))} plain metrics, missing: {missing}")
    essential = {
        "sglang:time_to_first_token_seconds",
        "sglang:inter_token_latency_seconds",
        "sglang:e2e_request_latency_seconds",
        "sglang:num_requests_total",
        "sglang:prompt_tokens_total",
        "sglang:num_running_reqs",
        "sglang:num_queue_reqs",
        "sglang:token_usage",
    }
    assert not essential & set(missing)


def metric_names(server: Server) -> set[str]:
    """The names of all metric families."""
    lines = server.get("/metrics").text.splitlines()
    return {line.split()[2] for line in lines if line.startswith("# TYPE ")}


def metric(server: Server, name: str) -> float:
    """The sum of a metric over its labels; 0 where there is none yet."""
    lines = server.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name + "{"))


@pytest.mark.parametrize("wrong", [-1, 10**6])
def test_a_token_that_the_model_does_not_have(semi_pd: Server, wrong: int) -> None:
    """Is refused, and costs nobody a worker."""
    before = {process.pid for process in semi_pd.processes()}
    body = endless([5, wrong, 9], 4)
    reply = requests.post(f"{semi_pd.url}/generate", json=body, timeout=60)
    assert reply.status_code == 400, reply.text
    assert f"input_ids contain {wrong}" in reply.text
    assert {process.pid for process in semi_pd.processes()} == before
