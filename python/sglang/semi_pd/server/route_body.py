# SPDX-License-Identifier: Apache-2.0
"""What the routes that change something have in common: a JSON body, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse

if TYPE_CHECKING:
    from sglang.semi_pd.server.admin_access import AdminAccess

Asked = TypeVar("Asked")

LONGEST_BODY_BYTES = 4096
BAD_REQUEST, CONFLICT = 400, 409


class BadBodyError(ValueError):
    """What is wrong with a body, in one line that names the field."""


async def asked_by(
    request: Request, access: AdminAccess, parse: Callable[[bytes], Asked]
) -> Asked | JSONResponse:
    """What a caller who may asks for; else 400, 401 or 403, and why.

    Args:
        parse: makes it of the body, or raises ``BadBodyError``.
    """
    refusal = access.refusal(request)
    if refusal is not None:
        return error(refusal.status_code, refusal.message)
    try:
        return parse(await _read_body(request))
    except BadBodyError as wrong:
        return error(BAD_REQUEST, str(wrong))


async def _read_body(request: Request) -> bytes:
    """The body, as long as it is short.

    Raises:
        BadBodyError: it is longer than any of ours.
    """
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > LONGEST_BODY_BYTES:
            raise BadBodyError(f"the body exceeds {LONGEST_BODY_BYTES} bytes")
    return body


def parse_object(
    text: bytes, fields: tuple[str, ...], example: dict[str, Any]
) -> dict[str, Any]:
    """The body's object, which has no other fields than these.

    Raises:
        BadBodyError: it is not JSON, no object, or names another field.
    """
    said = f"send {json.dumps(example)}"
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        raise BadBodyError(f"the body is not JSON; {said}") from None
    if not isinstance(body, dict):
        raise BadBodyError(f"the body is not an object; {said}")
    for name in body:
        if name not in fields:
            raise BadBodyError(f"{name[:50]!r} is not a field; {said}")
    return body


def error(status_code: int, message: str, **more: Any) -> JSONResponse:
    """A refusal with its reason."""
    return JSONResponse({"error": {"message": message}, **more}, status_code)
