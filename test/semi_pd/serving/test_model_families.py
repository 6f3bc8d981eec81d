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


def answers(
    model: Path, systems: dict[str, list[str]], bodies: list[Body]
) -> list[list[Answer]]:
    """What a server of each system answers, one request at a time.

    Side by side while they start: for half of that time a plain one uses one core.
    """
    servers = [
        Server(name=name, model=model, flags=[*COMMON_FLAGS, *flags])
        for name, flags in systems.items()
    ]
    with ExitStack() as stack:
        for server in servers:
            stack.callback(server.clean)
            server.start()
        found = []
        for server in servers:
            server.wait_ready()
            found.append(client.stream_all(server.url, bodies, limit=1))
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
    systems = {f"plain {model.name}": [], f"second {model.name}": second_flags}
    expected, got = answers(model, systems, bodies)
    assert any(one["output_ids"] for one in expected)
    found = mismatches(bodies, expected, got)
    assert not found, "\n".join(map(str, found))
