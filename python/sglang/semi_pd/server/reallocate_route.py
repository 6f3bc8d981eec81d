# SPDX-License-Identifier: Apache-2.0
"""``POST /semi_pd/reallocate``: move the split, and answer when the new one serves."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.responses import JSONResponse
from sglang.semi_pd.errors import ConfigError
from sglang.semi_pd.server.admin_access import AdminAccess
from sglang.semi_pd.server.route_body import (
    BAD_REQUEST,
    CONFLICT,
    BadBodyError,
    asked_by,
    error,
    parse_object,
)
from sglang.semi_pd.sm_allocation import SMAllocation

if TYPE_CHECKING:
    from sglang.semi_pd.semi_pd_coordinator import SemiPDCoordinator

FIELDS = ("prefill_percentage", "decode_percentage")
EXAMPLE = dict(zip(FIELDS, (60, 40), strict=True))


class Reallocation:
    """Passes one request at a time to the coordinator, off the event loop.

    Lives in the main process; its methods run on the HTTP server's event loop.
    """

    def __init__(self, coordinator: SemiPDCoordinator) -> None:
        self._coordinator = coordinator
        self._access = AdminAccess(coordinator.server_args)
        self._is_moving = False

    async def answer(self, request: Request) -> JSONResponse:
        """200 when the split asked for serves; else 400, 401, 403 or 409, and why."""
        allocation = await asked_by(request, self._access, parse_body)
        if isinstance(allocation, JSONResponse):
            return allocation
        if self._is_moving:
            return self._conflict("another request is moving the split")
        self._is_moving = True
        try:
            return await self._move(allocation)
        except ConfigError as wrong:
            return error(BAD_REQUEST, wrong.in_one_line())
        finally:
            self._is_moving = False

    async def _move(self, allocation: SMAllocation) -> JSONResponse:
        started_s = time.monotonic()
        is_moved = await asyncio.to_thread(
            self._coordinator.request_sm_reallocation, allocation
        )
        if not is_moved:
            reason = self._coordinator.rotation.get_status()["last_failure"]
            return self._conflict(f"the split does not move: {reason}")
        took_s = time.monotonic() - started_s
        return JSONResponse({**self._current(), "took_s": round(took_s, 3)})

    def _conflict(self, message: str) -> JSONResponse:
        return error(CONFLICT, message, **self._current())

    def _current(self) -> dict[str, Any]:
        allocation = self._coordinator.rotation.current_allocation
        return {"current_sm_allocation": allocation.as_dict()}


def parse_body(text: bytes) -> SMAllocation:
    """The split that a request's body asks for.

    Raises:
        BadBodyError: it is not an object of the two fields with a share in each.
    """
    body = parse_object(text, FIELDS, EXAMPLE)
    for name in FIELDS:
        if name not in body:
            raise BadBodyError(f"{name} is missing; send {json.dumps(EXAMPLE)}")
    try:
        return SMAllocation(**body)
    except ConfigError as wrong:
        raise BadBodyError(wrong.in_one_line()[:300]) from None
