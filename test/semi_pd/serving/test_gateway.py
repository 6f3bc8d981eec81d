# SPDX-License-Identifier: Apache-2.0
"""What a gateway reads of an instance, and SGLang's gateway in front of one.

The gateway is an extra (``pip install '.[fleet]'`` in the clone); a whole fleet is in
``test_fleet``.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import client
import process_table
import pytest
from fleet_clients import hit_rate
from harness import REPOSITORY, Server, free_port
from workload import endless, greedy, prompt

sys.path.insert(0, str(REPOSITORY / "examples" / "semi_pd" / "fleet"))

import gateway as sglang_gateway
from gateway import Gateway, GatewayError

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("needs_semi_pd")]

COUNTS = ("num_running_reqs", "num_waiting_reqs", "num_waiting_uncached_tokens")
STREAMS, STREAM_TOKENS = 6, 250
PROMPTS, PROMPT_TOKENS = 24, 1400


@pytest.fixture(scope="module")
def gateway(
    plain: Server, semi_pd: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """SGLang's gateway in front of a plain and a Semi-PD server."""
    try:
        command = sglang_gateway.command()
    except GatewayError as error:
        pytest.skip(str(error))
    port = free_port()
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
    command += [word for pair in sglang_gateway.SETTINGS.items() for word in pair]
    command += ["--worker-urls", plain.url, semi_pd.url]
    log = tmp_path_factory.mktemp("gateway") / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    started = Gateway(f"http://127.0.0.1:{port}")
    try:
        waited = process_table.wait_until(lambda: len(started.healthy()) == 2, 60)
        assert waited is not None, log.read_text(errors="replace")[-3000:]
        yield started
    finally:
        process.terminate()
        process.wait(30)


@dataclass(frozen=True)
class Load:
    """The figures by which gateways balance."""

    running: int
    waiting: int
    waiting_tokens: int

    @property
    def requests(self) -> int:
        return self.running + self.waiting


async def loads_while(
    server: Server, bodies: list[Any], until: asyncio.Event
) -> list[Load]:
    """What ``/v1/loads`` said again and again while requests ran."""
    seen: list[Load] = []
    async with client.session() as http:

        async def watch() -> None:
            while not until.is_set():
                async with http.get(f"{server.url}/v1/loads") as reply:
                    [load] = (await reply.json())["loads"]
                seen.append(Load(*(load[name] for name in COUNTS)))
                await asyncio.sleep(0.02)

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(client.generate(http, server.url, b) for b in bodies))
        until.set()
        await watching
    return seen


def test_loads_count_both_workers(semi_pd: Server) -> None:
    """Streams that decode runs and prompts that wait for prefill, at the same time;
    never more than there are; nothing once all have ended."""
    bodies = [endless(prompt(20, seed=n), STREAM_TOKENS) for n in range(STREAMS)]
    bodies += [greedy(prompt(PROMPT_TOKENS, seed=n), 2) for n in range(PROMPTS)]

    async def run() -> list[Load]:
        return await loads_while(semi_pd, bodies, asyncio.Event())

    seen = asyncio.run(run())
    busiest = max(seen, key=lambda load: load.requests)
    print(f"{len(seen)} answers; busiest: {busiest}")
    assert any(load.running >= STREAMS and load.waiting for load in seen)
    assert max(load.waiting_tokens for load in seen) > PROMPT_TOKENS
    assert STREAMS + PROMPTS // 2 <= busiest.requests <= len(bodies)
    assert process_table.wait_until(lambda: is_idle(semi_pd), 10) is not None


def is_idle(server: Server) -> bool:
    """No requests, no tokens, in the load and in its older form.

    What is in the prefix cache is not in use, or a warm instance would look full.
    """
    [load] = server.get("/v1/loads").json()["loads"]
    [old] = server.get("/get_load").json()
    tokens = ("num_used_tokens", "num_total_tokens", "token_usage")
    counted = any(load[name] for name in (*COUNTS, *tokens))
    return not counted and old["num_reqs"] == old["num_tokens"] == 0


def test_server_info_is_of_one_server(plain: Server, semi_pd: Server) -> None:
    """What gateways register; no half of a pair, and decode's rate of tokens."""
    expected = plain.get("/server_info").json()
    semi_pd.generate(**endless(prompt(30, seed=7), 100))
    got = semi_pd.get("/server_info").json()
    for name in ("served_model_name", "dp_size", "tp_size", "version", "kv_events"):
        assert got[name] == expected[name], name
    assert got["disaggregation_mode"] == "null"
    [state] = got["internal_states"]
    assert state["disaggregation_mode"] == "null"
    assert state["last_gen_throughput"] > 0


def test_gateway_takes_both(gateway: Gateway, plain: Server, semi_pd: Server) -> None:
    """It registers a Semi-PD server with what it finds in a plain one."""
    workers = gateway.workers()
    one, other = workers[plain.url], workers[semi_pd.url]
    name = "metadata" if "metadata" in one else "labels"  # the latter is smg's
    assert one[name] == other[name]
    assert one["worker_type"] == other["worker_type"] == "regular"
    assert gateway.is_ready()


def test_same_tokens_through_the_gateway(
    gateway: Gateway, plain: Server, semi_pd: Server, tmp_path: Path
) -> None:
    """Both servers get requests, and the tokens are those of plain SGLang."""
    bodies = [greedy(prompt(40 + n, seed=n), 24) for n in range(24)]
    expected = client.generate_all(plain.url, bodies)
    before = [requests_of(server) for server in (plain, semi_pd)]
    got = client.generate_all(gateway.url, bodies, limit=24)
    assert [a["output_ids"] for a in got] == [a["output_ids"] for a in expected]
    grown = process_table.wait_until(
        lambda: sum(map(requests_of, (plain, semi_pd))) >= sum(before) + len(bodies), 15
    )
    after = [requests_of(server) for server in (plain, semi_pd)]
    print(f"requests of plain and Semi-PD: {before}, then {after}")
    assert grown is not None
    assert all(a > b for a, b in zip(after, before, strict=True))


def test_multi_turn_hits_the_cache_of_its_server(
    gateway: Gateway, plain: Server, semi_pd: Server
) -> None:
    """Cache-aware routing: at least 90 % of a single server's token hit rate."""
    forget(plain, semi_pd)
    alone = hit_rate(semi_pd.url)
    forget(plain, semi_pd)
    behind = hit_rate(gateway.url)
    print(f"token hit rate: one server {alone:.3f}, two of them {behind:.3f}")
    assert alone > 0
    assert behind >= 0.9 * alone


def forget(*servers: Server) -> None:
    """Empty the prefix caches; a server does so when it has nothing to do."""

    def all_did() -> bool:
        return all(server.post("/flush_cache", None).ok for server in servers)

    assert process_table.wait_until(all_did, 30) is not None


def requests_of(server: Server) -> float:
    """How many requests a server has had."""
    lines = server.get("/metrics").text.splitlines()
    name = "sglang:num_requests_total{"
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))
