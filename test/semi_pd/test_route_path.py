# SPDX-License-Identifier: Apache-2.0
"""Routes are refused and counted below ``--fastapi-root-path`` as without it."""

from __future__ import annotations

import pytest
from sglang.semi_pd.server.route_path import route_path


@pytest.mark.parametrize(
    ("path", "root", "routed"),
    [
        ("/health", "", "/health"),
        ("/llm/health", "/llm", "/health"),
        ("/llm/health", "/llm/", "/health"),
        ("/llmhealth", "/llm", "/llmhealth"),
        ("/health", "/llm", "/health"),
    ],
)
def test_root(path: str, root: str, routed: str) -> None:
    scope = {"type": "http", "path": path, "root_path": root}
    assert route_path(scope) == routed


def test_what_is_not_http_has_no_route() -> None:
    assert route_path({"type": "lifespan"}) == ""
