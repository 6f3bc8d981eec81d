# SPDX-License-Identifier: Apache-2.0
"""Semi-PD's own HTTP routes, and the SGLang routes that it has to refuse.

Registered on SGLang's application itself, not through a router: SGLang's key checks
find an endpoint's level only there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from sglang.semi_pd.monitoring.dashboard_page import DashboardPage
from sglang.semi_pd.server.reallocate_route import Reallocation
from sglang.semi_pd.server.route_path import route_path
from sglang.semi_pd.server.slo_route import ControllerChange
from starlette.types import ASGIApp, Receive, Scope, Send

if TYPE_CHECKING:
    from sglang.semi_pd.semi_pd_coordinator import SemiPDCoordinator

PAGE = "/semi_pd/"

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
    "/weights_checker": _WEIGHTS,
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
        path = route_path(scope)
        why = REFUSED.get(path)
        if why is None:
            await self._app(scope, receive, send)
            return
        message = f"{path} is not supported with Semi-PD: {why}"
        await JSONResponse({"error": {"message": message}}, 400)(scope, receive, send)


class PageBeforeKeys:
    """ASGI middleware: the dashboard's page, for a browser cannot send a key with it.

    Only the page itself, which holds no data; what it shows it asks for with the key.
    """

    def __init__(self, app: ASGIApp, page: Response) -> None:
        self._app, self._page = app, page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_page = route_path(scope) == PAGE
        if is_page and scope["method"] in ("GET", "HEAD"):
            await self._page(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def add_key_checks(original: Callable[..., None], app: FastAPI, **keys: Any) -> None:
    """SGLang's key checks on every route, with the page in front of them."""
    original(app, **keys)
    app.add_middleware(PageBeforeKeys, page=_page())


def install(app: FastAPI, coordinator: SemiPDCoordinator) -> None:
    """Add the routes, and refuse the others; before the server starts to listen."""
    from sglang.srt.utils.auth import AuthLevel, auth_level

    reallocation = Reallocation(coordinator)
    controller = ControllerChange(coordinator)
    page = _page()

    async def status() -> dict[str, Any]:
        # It takes locks, one of which a worker may hold that stands still.
        return await asyncio.to_thread(coordinator.get_status)

    async def history(since: int = 0) -> JSONResponse:
        return JSONResponse(coordinator.history.since(since))

    async def dashboard() -> Response:
        return page

    @auth_level(AuthLevel.ADMIN_OPTIONAL)
    async def reallocate(request: Request) -> JSONResponse:
        return await reallocation.answer(request)

    @auth_level(AuthLevel.ADMIN_OPTIONAL)
    async def slo(request: Request) -> JSONResponse:
        return await controller.answer(request)

    app.add_api_route("/semi_pd/status", status, methods=["GET"])
    app.add_api_route("/semi_pd/history", history, methods=["GET"])
    app.add_api_route("/semi_pd/reallocate", reallocate, methods=["POST"])
    app.add_api_route("/semi_pd/slo", slo, methods=["POST"])
    app.add_api_route(PAGE, dashboard, methods=["GET"], include_in_schema=False)
    if coordinator.server_args.enable_metrics:
        _add_metrics(app, coordinator)
    app.add_middleware(RefuseUnsupported)


def _page() -> Response:
    page = DashboardPage.load()
    return HTMLResponse(page.html, headers=page.headers)


def _add_metrics(app: FastAPI, coordinator: SemiPDCoordinator) -> None:
    # Not before: it imports prometheus_client, which SGLang has to set up first.
    from sglang.semi_pd.server.metrics_route import PATHS, MetricsRoute

    route = MetricsRoute(coordinator)

    async def metrics(request: Request) -> Response:
        return await route.answer(request)

    for path in PATHS:
        app.add_api_route(path, metrics, methods=["GET"], include_in_schema=False)
