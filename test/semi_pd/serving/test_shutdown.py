# SPDX-License-Identifier: Apache-2.0
"""However the server ends, nothing stays behind.

The first test ends the session's Semi-PD server, after all it has been through; the
second one starts its own.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import client
import process_table
import pytest
from client import Stream
from harness import COMMON_FLAGS, Server
from workload import endless, prompt

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("needs_semi_pd")]

STREAMS = 8
TOKENS = 1200
GRACE_S = 60.0
NOTICED_S = 0.5
AFTER_MAIN_S = 5.0


def test_sigterm_lets_streams_finish(semi_pd: Server) -> None:
    """SIGTERM to every process, as systemd and ``timeout`` send it, with 8 streams: all
    finish, exit code 0, nothing is left; new requests and health checks get 503
    meanwhile."""
    bodies = [endless(prompt(100 + n, seed=n), TOKENS) for n in range(STREAMS)]
    # Bad input of earlier tests leaves SGLang's own tracebacks.
    logged = len(semi_pd.log())

    async def run() -> list[Stream]:
        async with client.session() as http:
            tasks = [
                asyncio.create_task(client.stream(http, semi_pd.url, body))
                for body in bodies
            ]
            await asyncio.sleep(0.6)
            assert not any(task.done() for task in tasks)
            semi_pd.signal_group(signal.SIGTERM)
            await asyncio.sleep(NOTICED_S)
            await refused_while_draining(http, semi_pd.url)
            assert not all(task.done() for task in tasks)
            return await asyncio.wait_for(asyncio.gather(*tasks), GRACE_S)

    start = time.monotonic()
    streams = asyncio.run(run())
    drained_s = time.monotonic() - start
    code = semi_pd.wait_exit(GRACE_S)
    print(
        f"streams ended {drained_s:.1f} s, main {time.monotonic() - start:.1f} s after"
    )
    assert [len(one.last["output_ids"]) for one in streams] == [TOKENS] * STREAMS
    assert [one.finish_type for one in streams] == ["length"] * STREAMS
    assert code == 0, semi_pd.failure(f"exit code {code}")
    assert not semi_pd.leftovers()
    said = semi_pd.log()[logged:]
    assert "Traceback" not in said, semi_pd.failure("a traceback in the log")


async def refused_while_draining(http: aiohttp.ClientSession, url: str) -> None:
    """503 with one line, which a gateway takes as "try another instance"."""
    for path, body in (
        ("/generate", endless([5, 6, 7], 4)),
        ("/v1/completions", {"model": "tiny", "prompt": "The", "max_tokens": 4}),
    ):
        async with http.post(url + path, json=body) as reply:
            assert reply.status == 503, path
            error = (await reply.json())["error"]
            assert error["message"] == "this server is shutting down"
    for path in ("/health", "/health_generate", "/ping"):
        async with http.get(url + path) as reply:
            assert reply.status == 503, path
    async with http.get(f"{url}/semi_pd/status") as reply:
        status = (await reply.json())["readiness"]
    assert not status["is_ready"] and list(status["closed_by"]) == ["draining"]
    assert status["requests_under_way"] == STREAMS


@pytest.fixture
def killed(tiny_model: Path, second_flags: list[str]) -> Iterator[Server]:
    """A server of which a process is killed that cannot be replaced."""
    flags = [*COMMON_FLAGS, *second_flags]
    server = Server(name="killed", model=tiny_model, flags=flags)
    try:
        yield server.start().wait_ready()
    finally:
        server.clean()


def test_sigkill_of_main(killed: Server) -> None:
    """SIGKILL of the main process in mid-work: every child is gone within 5 s."""
    asyncio.run(kill_under_load(killed, lambda: killed.signal(signal.SIGKILL)))
    waited = process_table.wait_until(lambda: not killed.processes(), AFTER_MAIN_S)
    left = process_table.describe(killed.processes())
    assert waited is not None, f"after {AFTER_MAIN_S} s:\n{left}"
    print(f"every child gone {waited:.2f} s after its main process")


@pytest.mark.parametrize("victim", ["semi_pd_resident", "detokenizer"])
def test_sigkill_of_what_cannot_be_replaced(killed: Server, victim: str) -> None:
    """The server says so in one line and ends, with all that it has."""
    process = killed.titled(victim)
    asyncio.run(kill_under_load(killed, process.kill))
    assert killed.wait_exit(AFTER_MAIN_S) == 1
    assert not killed.leftovers()
    ends = [line for line in killed.log().splitlines() if "Semi-PD ends" in line]
    assert len(ends) == 1 and f"(pid {process.pid}) is gone" in ends[0], ends
    assert "SIGQUIT" not in killed.log()


async def kill_under_load(server: Server, kill: Callable[[], None]) -> None:
    """SIGKILL while 8 streams run; their clients see the connection break."""
    async with client.session() as http:
        bodies = [endless(prompt(600, seed=n), 1500) for n in range(STREAMS)]
        tasks = [
            asyncio.create_task(client.stream(http, server.url, body))
            for body in bodies
        ]
        await asyncio.sleep(0.8)
        kill()
        ended = await asyncio.wait_for(
            asyncio.gather(*tasks, return_exceptions=True), AFTER_MAIN_S
        )
    assert all(isinstance(one, Exception) for one in ended)
