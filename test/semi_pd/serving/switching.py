# SPDX-License-Identifier: Apache-2.0
"""What clients do while rotations go on; some of them in a switch that waits for it."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import client
from harness import Server
from rehearsing import rehearsing, rotate
from reuse import Clients, Use

SPLITS = ((60, 40), (40, 60))
REUSE_S = 20.0
HANDOVER_S = 0.5
"""In which a request that has begun comes to decode."""


@dataclass
class Crowd:
    """What came of requests, and why each rotation was refused: None if it was not."""

    answers: list[client.Answer]
    refusals: list[str | None]
    took_s: list[float]

    def __str__(self) -> str:
        took = [f"{seconds:.1f}" for seconds in self.took_s]
        return f"rotations took {took} s, were refused for {self.refusals}"


async def while_rotating(url: str, bodies: Sequence[client.Body]) -> Crowd:
    """All requests at once, and one rotation after the other until they have ended."""
    async with client.session() as http:
        streams = asyncio.gather(*(client.stream(http, url, b) for b in bodies))
        refusals, took_s = [], []
        for split in itertools.cycle(SPLITS):
            began = time.monotonic()
            refusals.append(await rotate(http, url, split))
            took_s.append(time.monotonic() - began)
            if streams.done():
                break
        return Crowd([one.last for one in await streams], refusals, took_s)


async def while_ids_are_reused(
    server: Server, *, ids: int, rotations: int
) -> tuple[list[Use], list[tuple[float, float]]]:
    """All requests, and of each rotation when the standby knew what ran, and when it
    was let go on."""
    windows = []
    async with client.session() as http:
        clients = Clients(http, server.url, count=ids, seed=1)
        for split in itertools.islice(itertools.cycle(SPLITS), rotations):
            async with rehearsing(http, server, split):
                introduced = time.monotonic()
                await asyncio.wait_for(clients.all_again(introduced), REUSE_S)
                await asyncio.sleep(HANDOVER_S)
                windows.append((introduced, time.monotonic()))
        return await clients.finish(), windows


async def while_aborting(
    server: Server, *, ids: int, rotations: int, longest: int
) -> tuple[list[Use], list[str | None]]:
    """Requests that are all aborted, many of them while they wait at prefill; and why
    each rotation was refused."""
    async with client.session() as http:
        clients = Clients(
            http, server.url, count=ids, seed=2, longest=longest, aborted=1.0
        )
        splits = itertools.islice(itertools.cycle(SPLITS), rotations)
        refusals = [await rotate(http, server.url, split) for split in splits]
        return await clients.finish(), refusals
