# SPDX-License-Identifier: Apache-2.0
"""Clients that leave or abort take nothing with them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

import client
import process_table
import pytest
from client import Stream
from compare import content, mismatches, unexplained
from harness import Server
from workload import endless, greedy, prompt

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("needs_semi_pd")]

DISCONNECTS = 100
ABORTS = 50
SETTLE_S = 15.0


def used_blocks(usage: dict[str, Any]) -> int:
    """Blocks that requests hold: all but the free and the cached ones."""
    return int(usage["allocated_blocks"] - usage["blocks_by_state"]["cached"])


def require_nothing_allocated(server: Server) -> None:
    """0 blocks that are not cached, 0 rows, soon after the last request."""

    def is_empty() -> bool:
        usage = server.memory_usage()
        return used_blocks(usage) == 0 and usage["allocated_rows"] == 0

    waited = process_table.wait_until(is_empty, SETTLE_S)
    if waited is None:
        raise server.failure(f"still allocated: {server.memory_usage()}")
    print(f"nothing allocated after {waited:.2f} s")


@pytest.fixture(autouse=True)
def starts_empty(semi_pd: Server) -> None:
    """A leak is blamed on the test that made it."""
    require_nothing_allocated(semi_pd)


def test_blocks_are_counted(semi_pd: Server) -> None:
    """The status does see what a running request holds."""

    async def run() -> None:
        async with client.session() as http:
            body = endless(prompt(500, seed=1), 400)
            running = asyncio.create_task(client.stream(http, semi_pd.url, body))
            while not running.done():
                usage = await asyncio.to_thread(semi_pd.memory_usage)
                if used_blocks(usage) > 0 and usage["allocated_rows"] > 0:
                    break
            assert not running.done(), "the request ended and was never counted"
            await running

    asyncio.run(run())
    require_nothing_allocated(semi_pd)


async def leave_after(http: Any, url: str, body: client.Body, pieces: int) -> None:
    """Read some pieces of a stream, then close the connection."""
    count = 0
    events = client.events(http, f"{url}/generate", {**body, "stream": True})
    async for _ in events:
        count += 1
        if count > pieces:
            break
    await events.aclose()


async def leave_at_once(http: Any, url: str, body: client.Body, after_s: float) -> None:
    """Close the connection of a request that was not answered yet."""
    work = client.generate(http, url, body)
    task = asyncio.create_task(work)
    await asyncio.wait([task], timeout=after_s)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_disconnects(plain: Server, semi_pd: Server) -> None:
    """100 clients leave, most of them in mid-stream; the others notice nothing."""
    bystanders = [endless(prompt(50, seed=n), 200) for n in range(4)]
    expected = [content(one) for one in client.generate_all(plain.url, bystanders)]
    source = random.Random(0)

    async def run() -> list[Stream]:
        async with client.session() as http:
            staying = asyncio.gather(
                *(client.stream(http, semi_pd.url, body) for body in bystanders)
            )
            leaving: list[Coroutine[Any, Any, None]] = []
            for place in range(DISCONNECTS):
                body = endless(prompt(source.randint(1, 1200), seed=place), 800)
                if place % 5 == 4:
                    after_s = source.uniform(0, 0.5)
                    leaving.append(leave_at_once(http, semi_pd.url, body, after_s))
                else:
                    pieces = source.randint(0, 12)
                    leaving.append(leave_after(http, semi_pd.url, body, pieces))
            await client.gather_limited(leaving, 12)
            return await staying

    got = [content(one.last) for one in asyncio.run(run())]
    assert got == expected
    require_nothing_allocated(semi_pd)


def test_aborts(semi_pd: Server) -> None:
    """50 aborts, before, during and after prefill; each request says it was aborted."""
    source = random.Random(1)

    async def aborted(http: Any, place: int) -> Stream:
        rid = f"leak-{place}"
        body = {
            **endless(prompt(source.randint(1, 1500), seed=place), 2000),
            "rid": rid,
        }
        running = asyncio.create_task(client.stream(http, semi_pd.url, body))
        await asyncio.sleep(source.choice([0.0, 0.02, 0.1, 0.4, 0.8]))
        url = f"{semi_pd.url}/abort_request"
        while not running.done():
            async with http.post(url, json={"rid": rid}) as reply:
                assert reply.status == 200
            await asyncio.wait([running], timeout=2)
        return await running

    async def run() -> list[Stream]:
        async with client.session() as http:
            work = client.gather_limited([aborted(http, n) for n in range(ABORTS)], 8)
            return await asyncio.wait_for(work, 180)

    results = asyncio.run(run())
    assert [one.finish_type for one in results] == ["abort"] * ABORTS
    require_nothing_allocated(semi_pd)


def test_aborted_batches(semi_pd: Server) -> None:
    """All children of a batch with ``n`` go, not only the first."""
    rids = [f"batch-{n}" for n in range(3)]
    batch = {
        "input_ids": [prompt(400, seed=n) for n in range(3)],
        "rid": rids,
        "sampling_params": {
            "temperature": 0.5,
            "max_new_tokens": 1500,
            "ignore_eos": True,
            "n": 2,
        },
    }

    async def run() -> None:
        async with client.session() as http:
            await leave_at_once(http, semi_pd.url, batch, 1.0)
            await leave_after(http, semi_pd.url, batch, 5)

    asyncio.run(run())
    require_nothing_allocated(semi_pd)


def test_short_answers(semi_pd: Server) -> None:
    """Requests that end with their first token never reach decode, or leave it."""
    bodies = [greedy(prompt(n + 1, seed=n), n % 3) for n in range(60)]
    client.generate_all(semi_pd.url, bodies)
    require_nothing_allocated(semi_pd)


def test_refused_requests(semi_pd: Server) -> None:
    """A request that fails validation holds nothing."""
    for _ in range(5):
        semi_pd.post("/generate", {"text": "a", "sampling_params": {"regex": "[a"}})
        semi_pd.post("/generate", {"input_ids": prompt(5000, seed=1)})
    require_nothing_allocated(semi_pd)


def test_more_work_than_memory(plain: Server, semi_pd: Server) -> None:
    """More tokens than the KV cache holds: requests wait, end right, leave nothing."""
    total = semi_pd.get("/server_info").json()["max_total_num_tokens"]
    count = min(40, total // 2500 + 8)
    bodies = [endless(prompt(2400, seed=n), 120) for n in range(count)]
    answers = client.stream_all(semi_pd.url, bodies, limit=count)
    ends = [one["meta_info"]["finish_reason"]["type"] for one in answers]
    assert ends == ["length"] * count, ends
    require_nothing_allocated(semi_pd)
    expected = client.stream_all(plain.url, bodies, limit=8)
    found = mismatches(bodies, expected, answers)
    wrong = unexplained(plain.url, bodies, found)
    assert not wrong, "\n".join(map(str, wrong))
