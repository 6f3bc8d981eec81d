# SPDX-License-Identifier: Apache-2.0
"""Flush, pause and abort reach both workers and answer once."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import client
import process_table
import pytest
from client import Body
from compare import content
from harness import Server
from workload import endless, prompt

pytestmark = pytest.mark.server

LONG = 1500
"""Tokens that no host has generated in half a second."""
AT_ONCE_S = 5.0
"""More than the last tokens take on their way through a busy host."""


def test_flush_cache(plain: Server, semi_pd: Server) -> None:
    """Both workers flush; the next answer is unchanged."""
    before = content(semi_pd.generate(input_ids=prompt(50, seed=1)))
    for server in (plain, semi_pd):
        for send in (server.get, lambda path, s=server: s.post(path, {})):
            reply = send("/flush_cache")
            assert reply.status_code == 200, f"{server.name}: {reply.text}"
    assert content(semi_pd.generate(input_ids=prompt(50, seed=1))) == before


async def flush_beside_a_stream(
    url: str, seed: int, query: str, ends_within_s: float | None = None
) -> tuple[client.Stream, int]:
    """A stream that ran when the flush was asked for, and what the flush was answered.

    Args:
        ends_within_s: after that answer, the stream has.
    """
    async with client.session() as http:
        body = endless(prompt(100, seed=seed), LONG)
        running = asyncio.create_task(client.stream(http, url, body))
        await asyncio.sleep(0.5)
        assert not running.done()
        async with http.post(f"{url}/flush_cache{query}") as reply:
            status = reply.status
        return await asyncio.wait_for(running, ends_within_s), status


def test_flush_cache_is_refused_while_busy(plain: Server, semi_pd: Server) -> None:
    """As in plain SGLang: not while requests run."""

    for server in (plain, semi_pd):
        stream, status = asyncio.run(flush_beside_a_stream(server.url, 2, ""))
        assert len(stream.last["output_ids"]) == LONG
        assert status == 400, server.name


def test_a_profile_has_a_trace_of_each_role(semi_pd: Server, tmp_path: Path) -> None:
    """Under the name that the client gave, and merged by SGLang where asked for."""
    asked = {"output_dir": str(tmp_path), "activities": ["CPU"], "merge_profiles": True}
    named = {"profile_id": "mine", "with_stack": False, "record_shapes": False}
    assert semi_pd.post("/start_profile", {**asked, **named}).status_code == 200
    semi_pd.generate(input_ids=prompt(50, seed=8), max_new_tokens=4)
    assert semi_pd.post("/stop_profile", {}, timeout_s=120).status_code == 200
    expected = {
        f"{start}mine-{role}{rank}.trace.json.gz"
        for role in ("prefill", "decode")
        for start, rank in (("", "-TP-0"), ("merged-", ""))
    }

    def written() -> bool:
        return {file.name for file in tmp_path.iterdir()} == expected

    # The answer is prefill's: decode may still be writing.
    assert process_table.wait_until(written, 60) is not None, list(tmp_path.iterdir())


def test_flush_cache_waits_for_what_runs(plain: Server, semi_pd: Server) -> None:
    """As in plain SGLang, with a timeout; it takes nothing from the stream."""

    answers = []
    for server in (plain, semi_pd):
        flushed = flush_beside_a_stream(server.url, 6, "?timeout=60", AT_ONCE_S)
        stream, status = asyncio.run(flushed)
        answers.append(stream.last["output_ids"])
        assert status == 200, server.name
    assert answers[0] == answers[1] and len(answers[0]) == LONG


def test_pause_and_continue(semi_pd: Server) -> None:
    """Requests wait while generation is paused, and then end as if it never was."""
    body = endless(prompt(60, seed=3), 40)
    expected = content(semi_pd.generate(**body))

    async def run() -> client.Stream:
        async with client.session() as http:

            async def tell(path: str, body: Body) -> None:
                async with http.post(semi_pd.url + path, json=body) as reply:
                    assert reply.status == 200, await reply.text()

            await tell("/pause_generation", {"mode": "in_place"})
            try:
                running = asyncio.create_task(client.stream(http, semi_pd.url, body))
                await asyncio.sleep(1.0)
                assert not running.done()
            finally:
                await tell("/continue_generation", {})
            return await running

    assert content(asyncio.run(run()).last) == expected


def test_abort_by_rid(semi_pd: Server) -> None:
    """An aborted request ends soon, says so, and its neighbour goes on."""
    rid = f"abort-{uuid.uuid4().hex}"
    body = endless(prompt(100, seed=5), 1500)

    async def run() -> tuple[client.Stream, client.Stream]:
        async with client.session() as http:
            victim = asyncio.create_task(
                client.stream(http, semi_pd.url, {**body, "rid": rid})
            )
            other = asyncio.create_task(
                client.stream(http, semi_pd.url, endless(prompt(30, seed=6), 100))
            )
            await asyncio.sleep(0.7)
            url = f"{semi_pd.url}/abort_request"
            async with http.post(url, json={"rid": rid}) as reply:
                assert reply.status == 200
            return await asyncio.wait_for(victim, 20), await other

    victim, other = asyncio.run(run())
    assert victim.finish_type == "abort"
    assert len(victim.last["output_ids"]) < 1500
    assert other.finish_type == "length" and len(other.last["output_ids"]) == 100


def test_abort_all(semi_pd: Server) -> None:
    """Everything that runs or waits ends."""
    bodies = [endless(prompt(300, seed=n), 1500) for n in range(8)]

    async def run() -> list[client.Stream]:
        async with client.session() as http:
            tasks = [
                asyncio.create_task(client.stream(http, semi_pd.url, body))
                for body in bodies
            ]
            await asyncio.sleep(0.7)
            url = f"{semi_pd.url}/abort_request"
            async with http.post(url, json={"abort_all": True}) as reply:
                assert reply.status == 200
            return await asyncio.wait_for(asyncio.gather(*tasks), 30)

    assert [one.finish_type for one in asyncio.run(run())] == ["abort"] * 8
