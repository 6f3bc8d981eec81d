# SPDX-License-Identifier: Apache-2.0
"""The path by which a request is routed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Scope


def route_path(scope: Scope) -> str:
    """The path without ``--fastapi-root-path``, which uvicorn puts before it; empty for
    what is not HTTP."""
    if scope["type"] != "http":
        return ""
    path, root = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    below = path.removeprefix(root)
    return below if below.startswith("/") else path
