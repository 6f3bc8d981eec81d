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
from sglang.semi_pd.sm_allocation import SMAllocation

if TYPE_CHECKING:
    from sglang.semi_pd.semi_pd_coordinator import SemiPDCoordinator

FIELDS = ("prefill_percentage", "decode_percentage")
LONGEST_BODY_BYTES = 4096
BAD_REQUEST, CONFLICT = 400, 409


class BadBodyError(ValueError):
    """What is wrong with a body, in one line that names the field."""


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
        refusal = self._access.refusal(request)
        if refusal is not None:
            return _error(refusal.status_code, refusal.message)
        try:
            allocation = parse_body(await _read_body(request))
        except BadBodyError as error:
            return _error(BAD_REQUEST, str(error))
        if self._is_moving:
            return self._conflict("another request is moving the split")
        self._is_moving = True
        try:
            return await self._move(allocation)
        except ConfigError as error:
            return _error(BAD_REQUEST, error.in_one_line())
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
        return _error(CONFLICT, message, **self._current())

    def _current(self) -> dict[str, Any]:
        allocation = self._coordinator.rotation.current_allocation
        return {"current_sm_allocation": allocation.as_dict()}


def parse_body(text: bytes) -> SMAllocation:
    """The split that a request's body asks for.

    Raises:
        BadBodyError: it is not an object of the two fields with a share in each.
    """
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        raise BadBodyError(f"the body is not JSON; {_example()}") from None
    if not isinstance(body, dict):
        raise BadBodyError(f"the body is not an object; {_example()}")
    for name in FIELDS:
        if name not in body:
            raise BadBodyError(f"{name} is missing; {_example()}")
    for name in body:
        if name not in FIELDS:
            raise BadBodyError(f"{name[:50]!r} is not a field; {_example()}")
    try:
        return SMAllocation(**body)
    except ConfigError as error:
        raise BadBodyError(error.in_one_line()[:300]) from None


async def _read_body(request: Request) -> bytes:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > LONGEST_BODY_BYTES:
            raise BadBodyError(f"the body exceeds {LONGEST_BODY_BYTES} bytes")
    return body


def _example() -> str:
    example = dict(zip(FIELDS, (60, 40), strict=True))
    return f"send {json.dumps(example)}"


def _error(status_code: int, message: str, **more: Any) -> JSONResponse:
    return JSONResponse({"error": {"message": message}, **more}, status_code)
