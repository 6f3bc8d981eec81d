# SPDX-License-Identifier: Apache-2.0
"""Other families of models than the one all other tests use."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import client
import pytest
from client import Answer, Body
from compare import mismatches
from harness import COMMON_FLAGS, Server
from workload import IS_SOAK, mixed_requests

pytestmark = pytest.mark.server

PROMPTS = 16


def answers(model: Path, flags: list[str], bodies: list[Body]) -> list[Answer]:
    """What a server of its own answers, one request at a time."""
    server = Server(name=model.name, model=model, flags=[*COMMON_FLAGS, *flags])
    with ExitStack() as stack:
        stack.callback(server.clean)
        server.start().wait_ready()
        found = client.stream_all(server.url, bodies, limit=1)
        server.stop()
    return found


# With experts plain SGLang was seen to answer token 0 throughout on a CPU host, from
# some starts on.
FAMILIES = ["qwen2", *(["qwen2_moe"] if IS_SOAK else [])]


@pytest.mark.parametrize("other_tiny_model", FAMILIES, indirect=True)
def test_same_tokens_as_plain(other_tiny_model: Path, second_flags: list[str]) -> None:
    """Biases in the projections of attention; routed experts."""
    model = other_tiny_model
    bodies = mixed_requests(PROMPTS, seed=6)
    expected = answers(model, [], bodies)
    got = answers(model, second_flags, bodies)
    assert any(one["output_ids"] for one in expected)
    found = mismatches(bodies, expected, got)
    assert not found, "\n".join(map(str, found))
