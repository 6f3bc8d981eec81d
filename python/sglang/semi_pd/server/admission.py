# SPDX-License-Identifier: Apache-2.0
"""The door of the HTTP server: 503 with one line while new requests are not served.

A gateway takes 503 as "try another instance", of a health check and of a request. What
is under way is counted here, from the first byte that arrives to the last that leaves:
SGLang knows a request only once it has parsed it, and a drain must not miss one.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from sglang.semi_pd.server.readiness import Readiness
from sglang.semi_pd.server.route_path import route_path
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEALTH = frozenset({"/health", "/health_generate", "/ping"})
"""Paths on which load balancers ask whether to send requests here."""

REQUESTS = frozenset(
    {
        "/generate",
        "/encode",
        "/classify",
        "/invocations",
        "/v1/audio/transcriptions",
        "/v1/chat/completions",
        "/v1/classify",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/messages",
        "/v1/rerank",
        "/v1/responses",
        "/v1/score",
        os.environ.get("AIP_PREDICT_ROUTE", "/vertex_generate"),
        os.environ.get("SGLANG_OLLAMA_CHAT_ROUTE", "/api/chat"),
        os.environ.get("SGLANG_OLLAMA_GENERATE_ROUTE", "/api/generate"),
    }
)
"""Paths on which the model works."""

RETRY_AFTER_S = 1


class Admission:
    """ASGI middleware.

    Args:
        app: what answers if this does not.
        readiness: whether requests are let in.
        silence: says in one line which worker has not reported for too long, if any.
            Such an instance is not healthy, but what it may still do is not refused.
    """

    def __init__(
        self, app: ASGIApp, readiness: Readiness, silence: Callable[[], str | None]
    ) -> None:
        self._app = app
        self._readiness = readiness
        self._silence = silence

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = route_path(scope)
        why = self._refusal(path)
        if why is not None:
            await _unavailable(why)(scope, receive, send)
        elif path in REQUESTS:
            await self._serve_counted(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, path: str) -> str | None:
        if path in HEALTH:
            return self._readiness.why_not or self._silence()
        return self._readiness.why_not if path in REQUESTS else None

    async def _serve_counted(self, scope: Scope, receive: Receive, send: Send) -> None:
        """SGLang does work of its own for two seconds after a stream: not counted."""
        is_under_way = True
        self._readiness.under_way += 1

        def leave() -> None:
            nonlocal is_under_way
            self._readiness.under_way -= is_under_way
            is_under_way = False

        async def send_and_see(message: Message) -> None:
            await send(message)
            is_body = message["type"] == "http.response.body"
            if is_body and not message.get("more_body", False):
                leave()

        try:
            await self._app(scope, receive, send_and_see)
        finally:
            leave()


def _unavailable(why: str) -> JSONResponse:
    """Closes the connection: a client that keeps it would only be refused again."""
    error = {"message": why, "type": "service_unavailable", "code": 503}
    headers = {"Retry-After": str(RETRY_AFTER_S), "Connection": "close"}
    return JSONResponse({"error": error}, 503, headers)
