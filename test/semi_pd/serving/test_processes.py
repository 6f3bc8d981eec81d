# SPDX-License-Identifier: Apache-2.0
"""Prefill and decode are two real processes over one memory."""

from __future__ import annotations

import asyncio
import signal
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import client
import process_table
import psutil
import pytest
from client import Stream
from compare import content
from harness import Server
from process_table import ROLES
from shared_pages import (
    MemoryFile,
    frames,
    mappings,
    memory_files,
    resident_and_proportional,
)
from workload import endless, prompt

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("needs_semi_pd")]

LONG_PROMPTS = 4
LONG_LENGTH = 3500


@contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    """SIGSTOP for the time of the block."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def test_every_role_is_a_process(semi_pd: Server) -> None:
    """``ps`` shows one process for each role, and the main one."""
    processes = semi_pd.processes()
    print("\n" + process_table.describe(processes))
    pids = {semi_pd.role(role).pid for role in ROLES} | {semi_pd.pid}
    assert len(pids) == 4
    assert any("detokenizer" in process_table.title(p) for p in processes)


def test_same_memory_files(semi_pd: Server) -> None:
    """All three map the same files, shared, with the same extent."""
    by_role = {role: mappings(semi_pd.role(role).pid) for role in ROLES}
    for role, found in by_role.items():
        assert found, f"{role} maps no shared memory"
        assert all(one.is_shared for one in found), role
    inodes = {role: {one.inode for one in found} for role, found in by_role.items()}
    print({role: sorted(found) for role, found in inodes.items()})
    assert inodes["prefill"] == inodes["decode"] <= inodes["resident"]


def test_one_copy(semi_pd: Server) -> None:
    """Proportional sizes add up to one copy, not to one for each process."""
    semi_pd.generate(**endless(prompt(1000, seed=1), 32))
    sizes = {role: resident_and_proportional(semi_pd.role(role).pid) for role in ROLES}
    for role, (rss, pss) in sizes.items():
        print(f"{role:9s} Rss {rss >> 10:8d} KiB   Pss {pss >> 10:8d} KiB")
    once = max(rss for rss, _ in sizes.values())
    total = sum(pss for _, pss in sizes.values())
    assert total <= 1.02 * once + (1 << 20)


def wait_for_prefill(files: Sequence[MemoryFile]) -> list[list[int]]:
    """The pages that changed in each file, once no more of them do."""
    pages: list[list[int]] = []
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        time.sleep(0.7)
        now = [file.written_activations() for file in files]
        if any(now) and now == pages:
            return now
        pages = now
    raise AssertionError("prefill did not come to an end")


def test_decode_reads_the_pages_that_prefill_wrote(
    plain: Server, semi_pd: Server
) -> None:
    """What prefill writes while decode is stopped is what decode then reads.

    Decode is stopped before the request arrives, so prefill alone writes its KV. With
    that memory left alone the answer is the usual one; with it overwritten from outside
    the first token, which prefill chose, stays, and the others, decode's, change. Each
    prompt is new to the server, or prefill would write nothing, or nothing new.
    """
    body, another = (endless(prompt(900, seed=seed), 24) for seed in (902, 903))
    untouched, pages = answer_with_decode_stopped(semi_pd, body, overwrite=False)
    assert untouched == plain.generate(**body)["output_ids"]
    expected = plain.generate(**another)["output_ids"]
    overwritten, pages = answer_with_decode_stopped(semi_pd, another, overwrite=True)
    assert overwritten[0] == expected[0]
    assert overwritten[1:] != expected[1:]
    semi_pd.flush_cache()  # of what was overwritten
    assert semi_pd.generate(**another)["output_ids"] == expected
    require_same_frames(semi_pd, pages)


def answer_with_decode_stopped(
    server: Server, body: client.Body, *, overwrite: bool
) -> tuple[list[int], dict[int, list[int]]]:
    """The answer to a request prefilled while decode stood still; pages by inode."""
    decode = server.role("decode")

    async def run() -> tuple[Stream, dict[int, list[int]]]:
        async with client.session() as http:
            with stopped(decode):
                files = memory_files(server.role("resident").pid)
                asked = asyncio.create_task(client.stream(http, server.url, body))
                written = await asyncio.to_thread(wait_for_prefill, files)
                pages = dict(zip([file.inode for file in files], written, strict=True))
                for file in files if overwrite else ():
                    for page in pages[file.inode]:
                        file.negate(page)
            return await asked, pages

    result, pages = asyncio.run(run())
    print(f"{sum(map(len, pages.values()))} pages of KV written by prefill")
    return result.last["output_ids"], pages


def require_same_frames(server: Server, pages: dict[int, list[int]]) -> None:
    """Prefill and decode have these pages of the files in the same physical frames."""
    found: dict[str, list[int]] = {"prefill": [], "decode": []}
    for role, told in found.items():
        by_inode = {one.inode: one for one in mappings(server.role(role).pid)}
        for inode, numbers in pages.items():
            if numbers:
                told += frames(by_inode[inode], numbers)
    both = [pair for pair in zip(*found.values(), strict=True) if all(pair)]
    print(f"{len(both)} of {len(found['decode'])} frames visible in both page tables")
    assert all(ours == theirs for ours, theirs in both)


@pytest.mark.parametrize("role", ["prefill", "resident"])
def test_streams_go_on_without(semi_pd: Server, role: str) -> None:
    """Running streams need neither prefill nor the resident's processor time."""
    bodies = [endless(prompt(200, seed=n), 150) for n in range(4)]
    expected = [content(one) for one in client.generate_all(semi_pd.url, bodies)]

    async def run() -> list[Stream]:
        async with client.session() as http:
            streams = [Started(http, semi_pd.url, body) for body in bodies]
            for one in streams:
                await one.first
            with stopped(semi_pd.role(role)):
                work = asyncio.gather(*(one.result for one in streams))
                return await asyncio.wait_for(work, 60)

    got = [content(one.last) for one in asyncio.run(run())]
    assert got == expected


class Started:
    """A stream that runs, and the moment of its first piece."""

    def __init__(self, http: object, url: str, body: client.Body) -> None:
        self.first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.result = asyncio.create_task(self._run(http, url, body))

    async def _run(self, http: object, url: str, body: client.Body) -> Stream:
        stream = Stream()
        request = {**body, "stream": True}
        async for piece in client.events(http, f"{url}/generate", request):  # type: ignore[arg-type]
            stream.arrivals.append(time.monotonic())
            stream.pieces.append(piece)
            if not self.first.done():
                self.first.set_result(None)
        return stream


def gaps_during_long_prefill(server: Server) -> tuple[list[float], float]:
    """Inter-token gaps of four streams while long prompts are read; that time."""
    short = [endless(prompt(20, seed=n), 1200) for n in range(4)]
    long = [endless(prompt(LONG_LENGTH, seed=n), 1) for n in range(LONG_PROMPTS)]

    async def run() -> tuple[list[float], float]:
        async with client.session() as http:
            streams = [Started(http, server.url, body) for body in short]
            for one in streams:
                await one.first
            await asyncio.sleep(1)
            start = time.monotonic()
            await asyncio.gather(*(client.stream(http, server.url, b) for b in long))
            end = time.monotonic()
            assert not any(one.result.done() for one in streams), "streams too short"
            await asyncio.sleep(0.5)
            url = f"{server.url}/abort_request"
            async with http.post(url, json={"abort_all": True}) as reply:
                assert reply.status == 200
            results = await asyncio.gather(*(one.result for one in streams))
            return [g for one in results for g in one.gaps(start, end)], end - start

    return asyncio.run(run())


def test_long_prompts_do_not_stop_other_streams(plain: Server, semi_pd: Server) -> None:
    """While long prompts are read the other streams' tokens keep coming.

    Counted, not timed: on few cores the client itself is at times not run for as long
    as the reading takes, and what it then finds has waited for it.
    """
    counts = {}
    for server in (plain, semi_pd):
        gaps, reading_s = gaps_during_long_prefill(server)
        counts[server.name] = len(gaps)
        print(
            f"{server.name:8s} {LONG_PROMPTS} prompts of {LONG_LENGTH} tokens in "
            f"{reading_s:.2f} s; 4 streams meanwhile: {len(gaps)} gaps, "
            f"median {statistics.median(gaps) * 1e3:.0f} ms, "
            f"worst {max(gaps) * 1e3:.0f} ms"
        )
    assert counts[semi_pd.name] >= 4 * max(counts[plain.name], 5)


def test_no_new_tcp_listener(plain: Server, semi_pd: Server) -> None:
    """Nothing listens on TCP but HTTP and torch's rendezvous of each worker."""
    listeners = {
        server.name: process_table.tcp_listeners(server.processes())
        for server in (plain, semi_pd)
    }
    for name, found in listeners.items():
        print(name, *found, sep="\n    ")
    usual = [one for one in listeners[plain.name] if one[2] != plain.port]
    ours = [one for one in listeners[semi_pd.name] if one[2] != semi_pd.port]
    workers = 3
    assert len(ours) <= workers * max(len(usual), 1)
    addresses = {address for _, address, _ in usual} | {"127.0.0.1", "::1"}
    assert {address for _, address, _ in ours} <= addresses
