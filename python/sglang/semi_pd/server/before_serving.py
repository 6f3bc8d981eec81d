# SPDX-License-Identifier: Apache-2.0
"""A last step of the HTTP server's start, on its event loop, before it listens."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BeforeServing:
    """ASGI middleware: calls ``do`` once the application has started.

    No request is in yet, for the server listens only when it is told of that start.
    """

    def __init__(self, app: ASGIApp, do: Callable[[], None]) -> None:
        self._app, self._do = app, do

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return

        async def send_after(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                self._do()
            await send(message)

        await self._app(scope, receive, send_after)
