# SPDX-License-Identifier: Apache-2.0
"""Semi-PD's own HTTP routes, and the SGLang routes that it has to refuse.

Registered on SGLang's application itself, not through a router: SGLang's key checks
find an endpoint's level only there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from sglang.semi_pd.server.reallocate_route import Reallocation
from starlette.types import ASGIApp, Receive, Scope, Send

if TYPE_CHECKING:
    from sglang.semi_pd.semi_pd_coordinator import SemiPDCoordinator

_WEIGHTS = "two workers share one copy of the weights, which never changes"
_LORA = "LoRA adapters are not supported yet"
_SESSIONS = "sessions are not supported yet"
_MEMORY = "the memory belongs to the resident, for as long as the server runs"

REFUSED = {
    "/update_weights_from_disk": _WEIGHTS,
    "/update_weights_from_distributed": _WEIGHTS,
    "/update_weights_from_tensor": _WEIGHTS,
    "/update_weights_from_ipc": _WEIGHTS,
    "/init_weights_update_group": _WEIGHTS,
    "/destroy_weights_update_group": _WEIGHTS,
    "/init_weights_send_group_for_remote_instance": _WEIGHTS,
    "/send_weights_to_remote_instance": _WEIGHTS,
    "/load_lora_adapter": _LORA,
    "/load_lora_adapter_from_tensors": _LORA,
    "/unload_lora_adapter": _LORA,
    "/open_session": _SESSIONS,
    "/close_session": _SESSIONS,
    "/release_memory_occupation": _MEMORY,
    "/resume_memory_occupation": _MEMORY,
}


class RefuseUnsupported:
    """ASGI middleware: 400 with one line for what would harm or not work."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        why = REFUSED.get(scope.get("path", "")) if scope["type"] == "http" else None
        if why is None:
            await self._app(scope, receive, send)
            return
        message = f"{scope['path']} is not supported with Semi-PD: {why}"
        await JSONResponse({"error": {"message": message}}, 400)(scope, receive, send)


def install(app: FastAPI, coordinator: SemiPDCoordinator) -> None:
    """Add the routes, and refuse the others; before the server starts to listen."""
    from sglang.srt.utils.auth import AuthLevel, auth_level

    reallocation = Reallocation(coordinator)

    async def status() -> dict[str, Any]:
        return coordinator.get_status()

    @auth_level(AuthLevel.ADMIN_OPTIONAL)
    async def reallocate(request: Request) -> JSONResponse:
        return await reallocation.answer(request)

    app.add_api_route("/semi_pd/status", status, methods=["GET"])
    app.add_api_route("/semi_pd/reallocate", reallocate, methods=["POST"])
    if coordinator.server_args.enable_metrics:
        _add_metrics(app, coordinator)
    app.add_middleware(RefuseUnsupported)


def _add_metrics(app: FastAPI, coordinator: SemiPDCoordinator) -> None:
    # Not before: it imports prometheus_client, which SGLang has to set up first.
    from sglang.semi_pd.server.metrics_route import PATHS, MetricsRoute

    route = MetricsRoute(coordinator)

    async def metrics(request: Request) -> Response:
        return await route.answer(request)

    for path in PATHS:
        app.add_api_route(path, metrics, methods=["GET"], include_in_schema=False)
