# SPDX-License-Identifier: Apache-2.0
"""Two tensor-parallel ranks: each has pages and rows of its own, with other numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import client
import disturb
import pytest
from compare import mismatches
from harness import COMMON_FLAGS, SERVER_ENVIRONMENT, Server
from workload import IS_SOAK, endless, prompt

pytestmark = pytest.mark.server

TIMES = 20 if IS_SOAK else 2
STREAMS, PROMPTS, TOKENS = 6, 8, 24
POOL_TOKENS = 12_000
"""So few that sequences leave the prefix cache."""


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[Server]:
    """Two ranks on a CPU host: gloo, a core each."""
    started = Server(
        name="two-ranks",
        model=tiny_model,
        flags=[
            *COMMON_FLAGS,
            "--enable-semi-pd",
            "--tp-size=2",
            "--sm-partition-backend=mps",
            f"--max-total-tokens={POOL_TOKENS}",
        ],
        environment={
            **SERVER_ENVIRONMENT,
            "SGLANG_CPU_OMP_THREADS_BIND": "0|1",
            "TORCHDYNAMO_DISABLE": "1",
        },
    )
    try:
        yield started.start().wait_ready()
        started.stop()
    finally:
        started.clean()


def shared_by_ranks() -> list[Path]:
    """What SGLang's ranks share, of all living workers and of dead ones."""
    return list(Path("/dev/shm").glob("sgl_shm_mq_*"))


def cached_tokens(answers: list[client.Answer]) -> int:
    return sum(one["meta_info"]["cached_tokens"] for one in answers)


def test_the_prefix_cache_is_passed_on(server: Server) -> None:
    """Each rank has its own: what one says of its pages is wrong of the other's."""
    outcome = disturb.run(
        server.url,
        disturb.rotating((60, 40), (40, 60)),
        times=TIMES,
        streams=STREAMS,
        tokens=150,
    )
    print(outcome)
    assert not outcome.changed
    asked = [endless(prompt(400, 300 + n), TOKENS) for n in range(PROMPTS)]
    expected = client.generate_all(server.url, asked, limit=1)
    disturb.run(server.url, disturb.rotating((60, 40)), times=1, streams=1, tokens=50)
    again = client.generate_all(server.url, asked, limit=1)
    assert not mismatches(asked, expected, again)
    assert cached_tokens(again) > PROMPTS * 100, cached_tokens(again)
    assert server.memory_usage()["audits_failed"] == 0


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_deaths_change_no_token(server: Server, role: str) -> None:
    segments = len(shared_by_ranks())
    outcome = disturb.run(
        server.url, disturb.killing(role), times=TIMES, streams=STREAMS, tokens=150
    )
    print(outcome)
    assert not outcome.changed
    server.flush_cache()
    assert server.memory_usage()["allocated_blocks"] == 0
    assert len(shared_by_ranks()) == segments
