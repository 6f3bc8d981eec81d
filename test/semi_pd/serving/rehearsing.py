# SPDX-License-Identifier: Apache-2.0
"""A rotation that is held between introduction and switch, for as long as a test likes.

The standby's prefill worker is stopped as soon as it is ready: its rehearsal is waited
for, while the decode workers, which introduce requests to one another, go on.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import disturb
import process_table
import psutil
from harness import Server

START_S = 60.0
ROTATION_S = 60.0
POLL_S = 0.001
LOCK_S = 2.0
"""In which workers turn in their loops, unless they wait for the lock: after 5 s they
would give up."""
ROLES = ("prefill", "decode")
INTRODUCTION_S = 0.5
"""From the moment that both standbys are ready: what runs has been introduced."""


async def rotate(
    http: aiohttp.ClientSession, url: str, split: tuple[int, int]
) -> str | None:
    """Ask for a split; why it was refused, None if it serves.

    Raises:
        TimeoutError: neither within ``ROTATION_S``.
    """
    body = dict(zip(("prefill_percentage", "decode_percentage"), split, strict=True))

    async def ask() -> str | None:
        async with http.post(f"{url}/semi_pd/reallocate", json=body) as reply:
            text = await reply.text()
            assert reply.status in (200, 409), text
            return text if reply.status == 409 else None

    return await asyncio.wait_for(ask(), ROTATION_S)


@asynccontextmanager
async def rehearsing(
    http: aiohttp.ClientSession, server: Server, split: tuple[int, int]
) -> AsyncIterator[None]:
    """Inside, what ran is introduced to a standby; at the end is the switch."""
    now = await disturb.status(http, server.url)
    serving = now["components"]["prefill_TP0"]
    rotation = asyncio.create_task(rotate(http, server.url, split))
    standby = await asyncio.to_thread(
        _stop_when_ready, server, serving["pid"], serving["generation"]
    )
    try:
        await asyncio.sleep(INTRODUCTION_S)
        yield
        assert not rotation.done(), f"not waited for: {rotation.result()}"
    finally:
        process_table.signal_all([standby], signal.SIGCONT)
    refused = await rotation
    assert refused is None, refused


def _stop_when_ready(
    server: Server, serving_pid: int, generation: int
) -> psutil.Process:
    deadline = time.monotonic() + START_S
    while not (
        found := [
            process
            for process in process_table.find_role(server.processes(), "prefill")
            if process.pid != serving_pid
        ]
    ):
        assert time.monotonic() < deadline, "no standby"
    # To stop it before its first turn would hold it up before it is ready.
    _await_turn(server, "prefill", generation, deadline)
    _stop_without_the_lock(server, found[0], generation)
    _await_turn(server, "decode", generation, deadline)
    return found[0]


def _await_turn(server: Server, role: str, after: int, deadline: float) -> None:
    """Until a worker of a later generation has turned in its loop once."""
    while not any(
        turns for generation, turns in _turns(server, role) if generation > after
    ):
        assert time.monotonic() < deadline, f"{role} of the standby does not turn"
        time.sleep(POLL_S)


def _stop_without_the_lock(
    server: Server, process: psutil.Process, serving: int
) -> None:
    """Who is stopped with the block table's lock holds everybody up until recovery."""
    while True:
        process.send_signal(signal.SIGSTOP)
        before = [dict(_turns(server, role))[serving] for role in ROLES]
        stopped_s = time.monotonic()
        while time.monotonic() - stopped_s < LOCK_S:
            now = [dict(_turns(server, role))[serving] for role in ROLES]
            if all(b > a + 1 for a, b in zip(before, now, strict=True)):
                return
            time.sleep(POLL_S)
        process.send_signal(signal.SIGCONT)
        time.sleep(POLL_S)


def _turns(server: Server, role: str) -> list[tuple[int, int]]:
    """Of each generation, how often its worker has turned in its loop."""
    return [
        (int(path.name.split("-")[2]), int.from_bytes(path.read_bytes(), "little"))
        for path in server.run_directory.glob(f"run-*/heartbeat-{role}-*-0")
    ]
