# SPDX-License-Identifier: Apache-2.0
"""New workers take over while streams run; workers are killed: the same tokens.

``mps`` on a CPU host: the split is fixed when a process starts and moves by rotation.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import disturb
import process_table
import psutil
import pytest
import requests
from harness import COMMON_FLAGS, Server
from workload import IS_SOAK

ROTATIONS = 200 if IS_SOAK else 4
KILLS = 100 if IS_SOAK else 3
STREAMS = 16 if IS_SOAK else 8


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[Server]:
    flags = [flag for flag in COMMON_FLAGS if flag != "--disable-radix-cache"]
    started = Server(
        name="rotation",
        model=tiny_model,
        flags=[
            *flags,
            "--enable-semi-pd",
            "--sm-partition-backend=mps",
            "--max-total-tokens=40000",
            "--worker-hang-timeout=10",
        ],
        environment={"OMP_NUM_THREADS": "1"},
    )
    try:
        yield started.start().wait_ready()
        started.stop()
    finally:
        started.clean()


def require_nothing_leaked(server: Server) -> None:
    """After a flush no page and no row is anybody's."""
    assert requests.post(f"{server.url}/flush_cache", timeout=60).ok
    usage = requests.get(f"{server.url}/semi_pd/status", timeout=10).json()[
        "unified_memory_status"
    ]["memory_usage"]
    assert usage["allocated_blocks"] == 0
    assert usage["allocated_rows"] == 0
    assert usage["audits_failed"] == 0


def test_rotations_change_no_token(server: Server) -> None:
    outcome = disturb.run(
        server.url,
        disturb.rotating((60, 40), (40, 60)),
        times=ROTATIONS,
        streams=STREAMS,
    )
    print(outcome)
    assert not outcome.changed
    status = requests.get(f"{server.url}/semi_pd/status", timeout=10).json()
    assert status["recovery_status"]["worker_deaths"] == 0
    assert status["process_rotation_status"]["generation"] == ROTATIONS + 1
    require_nothing_leaked(server)


@pytest.mark.parametrize("roles", [("prefill",), ("decode",), ("prefill", "decode")])
def test_deaths_change_no_token(server: Server, roles: tuple[str, ...]) -> None:
    outcome = disturb.run(
        server.url, disturb.killing(*roles), times=KILLS, streams=STREAMS
    )
    print(outcome)
    assert not outcome.changed
    require_nothing_leaked(server)


def test_a_worker_that_hangs_is_replaced(server: Server) -> None:
    outcome = disturb.run(
        server.url,
        disturb.killing("decode", by=signal.SIGSTOP),
        times=1,
        streams=STREAMS,
    )
    assert not outcome.changed
    require_nothing_leaked(server)


def test_a_standby_that_dies_changes_nothing(server: Server) -> None:
    before = requests.get(f"{server.url}/semi_pd/status", timeout=10).json()
    serving = before["components"]["prefill_TP0"]["pid"]

    def standby() -> list[psutil.Process]:
        found = process_table.find_role(server.processes(), "prefill")
        return [process for process in found if process.pid != serving]

    with ThreadPoolExecutor() as pool:
        body = {"prefill_percentage": 50, "decode_percentage": 50}
        url = f"{server.url}/semi_pd/reallocate"
        answer = pool.submit(requests.post, url, json=body, timeout=300)
        assert process_table.wait_until(lambda: bool(standby()), 120) is not None
        process_table.signal_all(standby(), signal.SIGKILL)
        assert answer.result().status_code == 409
    after = requests.get(f"{server.url}/semi_pd/status", timeout=10).json()
    rotation, split = "process_rotation_status", "current_sm_allocation"
    assert after[rotation][split] == before[rotation][split]
    assert after["components"] == before["components"]
    assert after[rotation]["failed_moves"] == before[rotation]["failed_moves"] + 1
    require_nothing_leaked(server)
