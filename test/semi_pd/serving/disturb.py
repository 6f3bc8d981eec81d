# SPDX-License-Identifier: Apache-2.0
"""Streams while their workers are replaced: what clients notice, and what they do not.

The same requests run undisturbed first; every later run must give the same tokens.
"""

from __future__ import annotations

import asyncio
import os
import random
import select
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import client
import workload

RECOVERY_TIMEOUT_S = 300.0
POLL_S = 0.02
POISON = [13, 13, 13, 13]
"""As ``fault_plugin`` has it."""

Disturb = Callable[[aiohttp.ClientSession, str, "Outcome"], Awaitable[None]]


@dataclass
class Outcome:
    """What a series of disturbances did.

    Attributes:
        steady_gap_s: worst gap of a stream in the undisturbed run.
        gaps_s: worst gap of a stream in each disturbed run.
        took_s: how long each disturbance took, as seen from outside.
        detected_s: from the end of each killed process, which comes when the kernel has
            freed its memory, to the moment the server woke up over it.
        refused: what a request of the disturbance itself was answered.
        changed: streams whose tokens or text were not those of the undisturbed run.
    """

    steady_gap_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    detected_s: list[float] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def bodies(streams: int, tokens: int, seed: int) -> list[client.Body]:
    """Streams of ``tokens`` tokens, and some long prompts with few."""
    running = [
        workload.endless(workload.prompt(20 + 37 * i % 400, seed + i), tokens)
        for i in range(streams)
    ]
    prompts = [
        workload.endless(workload.prompt(700, seed + 1000 + i), tokens // 5)
        for i in range(streams // 4)
    ]
    return running + prompts


def run(  # noqa: PLR0913 - a trial has that many sides
    url: str,
    disturb: Disturb,
    *,
    times: int,
    streams: int = 16,
    tokens: int = 300,
    seed: int = 5,
    only_busy: bool = False,
) -> Outcome:
    """Disturb ``times`` times, at random moments, while requests run.

    With ``only_busy`` some stream has gone on since the disturbance before. Else a pair
    may be struck before it has answered anything, again and again, and the server may
    take a request for the cause.
    """
    requests = bodies(streams, tokens, seed)
    return asyncio.run(
        _run(url, disturb, times, requests, random.Random(seed), only_busy=only_busy)
    )


async def _run(  # noqa: PLR0913 - see run
    url: str,
    disturb: Disturb,
    times: int,
    requests: list[client.Body],
    source: random.Random,
    *,
    only_busy: bool,
) -> Outcome:
    outcome = Outcome()
    async with client.session() as http:

        async def all_streams(streams: list[client.Stream]) -> None:
            pairs = zip(requests, streams, strict=True)
            await asyncio.gather(*(client.stream(http, url, *pair) for pair in pairs))

        def fresh() -> list[client.Stream]:
            return [client.Stream() for _ in requests]

        await all_streams(fresh())  # what the first run still has to set up
        undisturbed, began = fresh(), time.monotonic()
        await all_streams(undisturbed)
        whole = time.monotonic() - began
        outcome.steady_gap_s = _worst_gap(undisturbed)
        while len(outcome.took_s) < times:
            streams = fresh()
            work = asyncio.create_task(all_streams(streams))
            await asyncio.sleep(source.uniform(0.05, 0.6) * whole)
            while len(outcome.took_s) < times and not work.done():
                at = time.monotonic()
                await disturb(http, url, outcome)
                over = time.monotonic()
                outcome.took_s.append(over - at)
                while only_busy and not (_went_on(streams, over) or work.done()):
                    await asyncio.sleep(POLL_S)
                await asyncio.sleep(source.uniform(0.0, 0.3) * whole)
            await work
            outcome.gaps_s.append(_worst_gap(streams))
            outcome.changed += _changes(streams, undisturbed)
    return outcome


def _went_on(streams: list[client.Stream], since: float) -> bool:
    """Whether a stream has had a piece, and has more to come."""
    return any(
        one.finish_type is None and one.arrivals and one.arrivals[-1] > since
        for one in streams
    )


def _worst_gap(streams: list[client.Stream]) -> float:
    return max(max(one.gaps(0, float("inf")), default=0.0) for one in streams)


def _changes(streams: list[client.Stream], like: list[client.Stream]) -> list[str]:
    found = []
    for place, (one, other) in enumerate(zip(streams, like, strict=True)):
        got, wanted = one.last["output_ids"], other.last["output_ids"]
        if got != wanted or one.last.get("text") != other.last.get("text"):
            same = [a == b for a, b in zip(got, wanted, strict=False)]
            at = same.index(False) if False in same else len(same)
            ended = one.last["meta_info"]["finish_reason"]
            found.append(
                f"stream {place}: {len(got)}/{len(wanted)} tokens, from {at}; {ended}"
            )
    return found


async def status(http: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    """``/semi_pd/status``."""
    async with http.get(f"{url}/semi_pd/status") as reply:
        return dict(await reply.json())


def rotating(*splits: tuple[int, int]) -> Disturb:
    """Move to these splits in turn; a refusal is an error."""
    turn = 0

    async def rotate(http: aiohttp.ClientSession, url: str, outcome: Outcome) -> None:
        nonlocal turn
        prefill, decode = splits[turn % len(splits)]
        turn += 1
        body = {"prefill_percentage": prefill, "decode_percentage": decode}
        async with http.post(f"{url}/semi_pd/reallocate", json=body) as reply:
            assert reply.status == 200, await reply.text()

    return rotate


def failing(fault: str, directory: Path) -> Disturb:
    """Ask for a split; a standby fails, as ``fault_plugin`` has it; nothing changes."""

    async def fail(http: aiohttp.ClientSession, url: str, outcome: Outcome) -> None:
        before = await status(http, url)
        (directory / fault).touch()
        body = {"prefill_percentage": 50, "decode_percentage": 50}
        async with http.post(f"{url}/semi_pd/reallocate", json=body) as reply:
            assert reply.status == 409, await reply.text()
        assert not (directory / fault).exists(), "no worker started"
        after = await status(http, url)
        assert after["components"] == before["components"]
        split = "current_sm_allocation"
        rotation = "process_rotation_status"
        assert after[rotation][split] == before[rotation][split]
        assert after[rotation]["last_failure"]

    return fail


def killing(*roles: str, by: signal.Signals = signal.SIGKILL) -> Disturb:
    """Send a signal to the workers of these roles, and wait until others serve."""

    def strike(pid: int) -> None:
        with suppress(ProcessLookupError):  # the other's death ended it
            os.kill(pid, by)

    return _striking(roles, strike, ends_at_once=by == signal.SIGKILL)


def faulting(*roles: str, directory: Path) -> Disturb:
    """Let the GPU of these workers fail (``benchmark/semi_pd/fault_plugin``)."""
    return _striking(roles, lambda pid: (directory / str(pid)).touch())


def _striking(
    roles: tuple[str, ...], strike: Callable[[int], None], *, ends_at_once: bool = False
) -> Disturb:
    async def disturb(http: aiohttp.ClientSession, url: str, outcome: Outcome) -> None:
        before = await status(http, url)
        pids = [before["components"][f"{role}_TP0"]["pid"] for role in roles]
        fds = [os.pidfd_open(pid) for pid in pids]
        ended = asyncio.create_task(asyncio.to_thread(first_end, fds))
        for pid in pids:
            strike(pid)
        deaths = before["recovery_status"]["worker_deaths"] + 1
        now = await _recovered(http, url, deaths)
        if ends_at_once:
            outcome.detected_s.append(now["last_death_at"] - await ended)

    return disturb


def dying_early(directory: Path, deaths: int) -> Disturb:
    """Kill decode; the pairs that come then die when they are told what it left."""

    async def disturb(http: aiohttp.ClientSession, url: str, outcome: Outcome) -> None:
        before = await status(http, url)
        wanted = before["recovery_status"]["worker_deaths"] + deaths
        (directory / "recover").touch()
        os.kill(before["components"]["decode_TP0"]["pid"], signal.SIGKILL)
        await _recovered(http, url, wanted, while_under_way=True)
        (directory / "recover").unlink()
        await _recovered(http, url, wanted)

    return disturb


def poisoning(directory: Path, role: str) -> Disturb:
    """One request that brings down each worker of ``role`` that has it: it fails."""

    async def disturb(http: aiohttp.ClientSession, url: str, outcome: Outcome) -> None:
        prompt = [*POISON, *workload.prompt(40, 99)]
        (directory / "poison").write_text(role)
        try:
            await client.generate(http, url, workload.endless(prompt, 100))
        except client.RequestFailedError as error:
            outcome.refused.append(str(error))
        (directory / "poison").unlink()

    return disturb


async def _recovered(
    http: aiohttp.ClientSession, url: str, deaths: int, *, while_under_way: bool = False
) -> dict[str, Any]:
    """The state of recovery when so many pairs have died, and when another serves."""
    deadline = time.monotonic() + RECOVERY_TIMEOUT_S
    while time.monotonic() < deadline:
        now = dict((await status(http, url))["recovery_status"])
        is_over = while_under_way or not now["is_recovering"]
        if now["worker_deaths"] >= deaths and is_over:
            return now
        await asyncio.sleep(POLL_S)
    raise TimeoutError("no recovery")


def first_end(pidfds: list[int]) -> float:
    """UNIX time at which the first of these processes had ended; closes them all."""
    try:
        select.select(pidfds, [], [])
        return time.time()
    finally:
        for fd in pidfds:
            os.close(fd)
