# SPDX-License-Identifier: Apache-2.0
"""A server in a thread ends when it is told to, however SGLang makes it."""

from __future__ import annotations

import asyncio
import threading
import urllib.request
from types import ModuleType
from typing import Any

import pytest
import uvicorn
from free_ports import free_port
from sglang.semi_pd.server.endable_uvicorn import EndableUvicorn

TIMEOUT_S = 20.0


async def application(scope: Any, _: Any, send: Any) -> None:
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"served"})


def as_with_ssl_refresh(module: Any, **options: Any) -> None:
    config = module.Config(application, **options)
    asyncio.run(module.Server(config).serve())


def as_without(module: Any, **options: Any) -> None:
    module.run(application, **options)


@pytest.mark.parametrize("serve", [as_without, as_with_ssl_refresh])
def test_it_ends_when_told(serve: Any) -> None:
    module = ModuleType("http_server")
    module.uvicorn = uvicorn  # type: ignore[attr-defined]
    endable, port = EndableUvicorn(), free_port()
    with endable.instead_in(module):
        options = {"port": port, "lifespan": "off", "log_level": "error"}
        thread = threading.Thread(
            target=serve, args=(module.uvicorn,), kwargs=options, daemon=True
        )
        thread.start()
        assert answer(port) == b"served"
        endable.end()
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()
    assert module.uvicorn is uvicorn


def test_one_that_was_told_before_does_not_begin() -> None:
    endable = EndableUvicorn()
    endable.end()
    endable.run(application, port=free_port(), lifespan="off", log_level="error")


def answer(port: int) -> bytes:
    """Of the server, once it listens."""
    for _ in range(200):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5) as reply:
                return bytes(reply.read())
        except OSError:
            threading.Event().wait(0.05)
    raise AssertionError("nobody answers")
