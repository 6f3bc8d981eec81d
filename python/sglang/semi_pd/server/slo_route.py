# SPDX-License-Identifier: Apache-2.0
"""``POST /semi_pd/slo``: other targets or another mode for the SLO controller."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.responses import JSONResponse
from sglang.semi_pd.errors import ConfigError
from sglang.semi_pd.server.admin_access import AdminAccess
from sglang.semi_pd.server.route_body import (
    CONFLICT,
    BadBodyError,
    asked_by,
    error,
    parse_object,
)
from sglang.semi_pd.server.slo_service import OFF, ControlChange
from sglang.semi_pd.slo_types import ControlMode

if TYPE_CHECKING:
    from sglang.semi_pd.semi_pd_coordinator import SemiPDCoordinator

FIELDS = tuple(field.name for field in dataclasses.fields(ControlChange))
EXAMPLE = {"mode": "follow", "ttft_target_ms": 200.0, "tpot_target_ms": 40.0}
_ANSWERED = ("is_running", "mode", "slo_constraints")
MODES = (OFF, *(mode.value for mode in ControlMode))


class ControllerChange:
    """Passes what an operator wants of the controller to the coordinator.

    Lives in the main process; its method runs on the HTTP server's event loop.
    """

    def __init__(self, coordinator: SemiPDCoordinator) -> None:
        self._coordinator = coordinator
        self._access = AdminAccess(coordinator.server_args)

    async def answer(self, request: Request) -> JSONResponse:
        """200 and what holds now; else 400, 401, 403 or 409, and why."""
        change = await asked_by(request, self._access, parse_body)
        if isinstance(change, JSONResponse):
            return change
        try:
            # Off the event loop: turning it off waits for a look under way.
            await asyncio.to_thread(self._coordinator.slo.change, change)
        except ConfigError as wrong:
            return error(CONFLICT, wrong.in_one_line())
        status = self._coordinator.slo.get_status()
        return JSONResponse({name: status[name] for name in _ANSWERED})


def parse_body(text: bytes) -> ControlChange:
    """What a request's body asks for; every field may be left out.

    Raises:
        BadBodyError: a field has no such value.
    """
    body = parse_object(text, FIELDS, EXAMPLE)
    if not body:
        raise BadBodyError(f"the body names none of {', '.join(FIELDS)}")
    if "mode" in body and body["mode"] not in MODES:
        raise BadBodyError(f"mode is none of {', '.join(MODES)}")
    for name in FIELDS[1:]:
        if name in body:
            body[name] = _positive(name, body[name])
    return ControlChange(**body)


def _positive(name: str, value: Any) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 < value < float("inf"):
        raise BadBodyError(f"{name} is no positive number of milliseconds")
    return float(value)
