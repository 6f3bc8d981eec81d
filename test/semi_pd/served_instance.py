# SPDX-License-Identifier: Apache-2.0
"""An instance's routes behind HTTP, without workers: for what asks them from outside.

The figures come from the parts that make a server's, on a clock of the test: an hour
of an instance in milliseconds.
"""

from __future__ import annotations

import math
import threading
from types import SimpleNamespace
from typing import Any

import upstream_auth
import uvicorn
from fastapi import FastAPI
from sglang.semi_pd.monitoring.history import History
from sglang.semi_pd.monitoring.instance_view import InstanceView
from sglang.semi_pd.sm_allocation import SMAllocation
from sglang.semi_pd.utils import InstanceRole
from status_document import Parts

auth = upstream_auth.load()

from sglang.semi_pd.server import http_routes  # noqa: E402


class ServedInstance:
    """An instance behind HTTP, without workers."""

    def __init__(self, api_key: str | None = None) -> None:
        self.parts = Parts()
        self.parts.now_s = 1_790_000_000.0
        self.server_args = SimpleNamespace(
            api_key=api_key, admin_api_key=None, enable_metrics=False
        )
        self.rotation = self.parts.rotation
        self.history = History(
            lambda: InstanceView.from_status(self.get_status()),
            clock=self.parts.clock,
        )

    def get_status(self) -> dict[str, Any]:
        status = self.parts.status()
        status["unified_memory_status"]["memory_usage"]["peak_blocks"] = 640
        return status

    def live(self, samples: int) -> None:
        """Serve a load that comes in waves, with a move of the split for each wave."""
        parts = self.parts
        for number in range(samples):
            wave = math.sin(number / 40)
            parts.serve(12, ttft_ms=90 + 60 * wave, tpot_ms=24 - 8 * wave)
            parts.now_s -= 8.0
            parts.report(InstanceRole.PREFILL, max(0, int(6 * wave)))
            parts.taken_blocks.update(
                leased=40,
                running=int(320 - 160 * wave),
                cached=int(180 + 80 * wave),
            )
            if number % 5 == 0:
                parts.controller.tick()
            if number % 125 == 124:
                share = (
                    60 if parts.rotation.current_allocation.decode_share < 0.4 else 70
                )
                parts.rotation.request_sm_reallocation(SMAllocation(share, 100 - share))
            self.history.take()

    def app(self) -> FastAPI:
        app = FastAPI()
        http_routes.install(app, self)  # type: ignore[arg-type]

        async def models() -> dict[str, Any]:
            return {"data": [{"id": "meta-llama/Llama-3.1-8B-Instruct"}]}

        app.add_api_route("/v1/models", models)
        if self.server_args.api_key:
            http_routes.add_key_checks(
                auth.add_api_key_middleware,
                app,
                api_key=self.server_args.api_key,
                admin_api_key=None,
            )
        return app


class HTTPServer:
    """The instance's application on a port of the loopback."""

    def __init__(self, instance: ServedInstance) -> None:
        config = uvicorn.Config(instance.app(), port=0, log_level="error")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.root = f"http://127.0.0.1:{port}"
        self.url = f"{self.root}/semi_pd/"

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()
