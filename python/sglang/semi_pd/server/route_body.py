# SPDX-License-Identifier: Apache-2.0
"""What the routes that change something have in common: a JSON body, and refusals."""

from __future__ import annotations

import json
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse

LONGEST_BODY_BYTES = 4096
BAD_REQUEST, CONFLICT = 400, 409


class BadBodyError(ValueError):
    """What is wrong with a body, in one line that names the field."""


async def read_body(request: Request) -> bytes:
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
