# SPDX-License-Identifier: Apache-2.0
"""Who closes an instance, and what the door then answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from sglang.semi_pd.server.admission import HEALTH, REQUESTS, Admission
from sglang.semi_pd.server.before_serving import BeforeServing
from sglang.semi_pd.server.readiness import Cause, Readiness
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

SHUTTING_DOWN = "this server is shutting down"


@dataclass
class Reply:
    """One HTTP answer."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


async def ask(app: Callable, path: str) -> Reply:
    """One request with an empty body, through ASGI."""
    reply = Reply()

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            reply.status = message["status"]
            reply.headers = {k.decode(): v.decode() for k, v in message["headers"]}
        else:
            reply.body += message.get("body", b"")

    scope: Scope = {"type": "http", "method": "POST", "path": path, "headers": []}
    await app(scope, receive, send)
    return reply


async def answers_all(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("served")(scope, receive, send)


def status_of(readiness: Readiness, path: str, silence: str | None = None) -> int:
    door = Admission(answers_all, readiness, lambda: silence)
    return asyncio.run(ask(door, path)).status


def test_closed_for_a_cause() -> None:
    readiness = Readiness()
    assert readiness.why_not is None
    readiness.close(Cause.DRAINING, SHUTTING_DOWN)
    assert readiness.why_not == SHUTTING_DOWN
    assert readiness.as_status() == {
        "is_ready": False,
        "closed_by": {"draining": SHUTTING_DOWN},
        "requests_under_way": 0,
    }


@pytest.mark.parametrize("path", sorted(HEALTH | REQUESTS))
def test_closed(path: str) -> None:
    """503 with one line for health checks and requests."""
    readiness = Readiness()
    assert status_of(readiness, path) == 200
    readiness.close(Cause.DRAINING, SHUTTING_DOWN)
    reply = asyncio.run(ask(Admission(answers_all, readiness, lambda: None), path))
    assert reply.status == 503
    assert json.loads(reply.body)["error"]["message"] == SHUTTING_DOWN
    assert "\n" not in reply.body.decode()
    assert reply.headers["connection"] == "close"
    assert int(reply.headers["retry-after"]) > 0


@pytest.mark.parametrize("path", ["/abort_request", "/semi_pd/status", "/metrics"])
def test_control_is_never_refused(path: str) -> None:
    readiness = Readiness()
    readiness.close(Cause.DRAINING, SHUTTING_DOWN)
    assert status_of(readiness, path) == 200


def test_a_silent_worker_fails_the_health_check_only() -> None:
    line = "the decode worker has not reported for 31 s"
    assert status_of(Readiness(), "/health", line) == 503
    assert status_of(Readiness(), "/generate", line) == 200


def test_requests_are_counted_until_their_last_byte() -> None:
    """Let in before the door closed, a request still counts; failing, it stops."""
    readiness = Readiness()
    go_on = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await go_on.wait()
        if scope["path"] == "/v1/completions":
            raise RuntimeError("the model failed")
        await answers_all(scope, receive, send)

    async def run() -> list[object]:
        door = Admission(slow, readiness, lambda: None)
        paths = ("/generate", "/v1/completions", "/flush_cache")
        tasks = [asyncio.create_task(ask(door, path)) for path in paths]
        await asyncio.sleep(0)
        assert readiness.under_way == 2
        readiness.close(Cause.DRAINING, SHUTTING_DOWN)
        assert (await ask(door, "/generate")).status == 503
        assert readiness.under_way == 2
        go_on.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    served, failed, _ = asyncio.run(run())
    assert isinstance(served, Reply) and served.status == 200
    assert isinstance(failed, RuntimeError)
    assert readiness.under_way == 0


class FirstMessages:
    """A start as a server leads it: what happened, in order."""

    def __init__(self, outcome: str) -> None:
        self.events: list[str] = []
        self._outcome = outcome

    async def application(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            self.events.append("application starts")
            await send({"type": self._outcome})
        else:
            await answers_all(scope, receive, send)

    async def run(self) -> None:
        async def receive() -> Message:
            return {"type": "lifespan.startup"}

        async def send(message: Message) -> None:
            self.events.append(message["type"])

        door = BeforeServing(self.application, lambda: self.events.append("done"))
        await door({"type": "lifespan"}, receive, send)
        assert (await ask(door, "/generate")).status == 200


def test_before_serving_once_and_before_the_server_listens() -> None:
    complete = "lifespan.startup.complete"
    start = FirstMessages(complete)
    asyncio.run(start.run())
    assert start.events == ["application starts", "done", complete]


def test_nothing_is_done_in_a_start_that_failed() -> None:
    failed = "lifespan.startup.failed"
    start = FirstMessages(failed)
    asyncio.run(start.run())
    assert start.events == ["application starts", failed]
