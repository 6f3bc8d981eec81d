# SPDX-License-Identifier: Apache-2.0
"""Many requests at a time, streamed, with the arrival time of every piece."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp

Body = dict[str, Any]
Answer = Any
T = TypeVar("T")

_LIMITS = aiohttp.ClientTimeout(total=600, sock_read=120)


class RequestFailedError(AssertionError):
    """The server answered with an error."""


@dataclass
class Stream:
    """A streamed answer: its last piece, and when each piece came."""

    pieces: list[Answer] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)

    @property
    def last(self) -> Answer:
        """The final piece, which holds all tokens."""
        return self.pieces[-1]

    @property
    def finish_type(self) -> str | None:
        """Why the request ended, None if the stream broke off."""
        if not self.pieces:
            return None
        reason = self.last["meta_info"]["finish_reason"]
        return reason["type"] if reason else None

    def gaps(self, start: float, end: float) -> list[float]:
        """Times between pieces of which some part lies between start and end."""
        times = self.arrivals
        return [
            b - a
            for a, b in zip(times, times[1:], strict=False)
            if b > start and a < end
        ]


def session() -> aiohttp.ClientSession:
    """An HTTP client for any number of connections and lines of any length."""
    # A connection for each request: the server closes idle ones as it likes.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    return aiohttp.ClientSession(
        connector=connector, timeout=_LIMITS, read_bufsize=1 << 24
    )


async def events(
    http: aiohttp.ClientSession, url: str, body: Body
) -> AsyncGenerator[Any, None]:
    """The server-sent events of one request, decoded."""
    async with http.post(url, json=body) as reply:
        if reply.status != 200:
            raise RequestFailedError(f"{reply.status} {(await reply.text())[:500]}")
        async for line in reply.content:
            text = line.decode().strip()
            if text.startswith("data:") and text != "data: [DONE]":
                yield json.loads(text.removeprefix("data:"))


async def stream(
    http: aiohttp.ClientSession, url: str, body: Body, into: Stream | None = None
) -> Stream:
    """One streamed ``/generate`` request, to its end; ``into`` is what it fills."""
    result = Stream() if into is None else into
    async for piece in events(http, f"{url}/generate", {**body, "stream": True}):
        result.arrivals.append(time.monotonic())
        if "error" in piece:
            raise RequestFailedError(str(piece["error"]))
        result.pieces.append(piece)
    return result


async def generate(http: aiohttp.ClientSession, url: str, body: Body) -> Answer:
    """One ``/generate`` request that is answered at once."""
    async with http.post(f"{url}/generate", json=body) as reply:
        if reply.status != 200:
            raise RequestFailedError(f"{reply.status} {(await reply.text())[:500]}")
        return await reply.json()


async def abort(http: aiohttp.ClientSession, url: str, rid: str) -> None:
    """Have a request ended."""
    async with http.post(f"{url}/abort_request", json={"rid": rid}) as reply:
        assert reply.status == 200


async def gather_limited(work: Sequence[Coroutine[Any, Any, T]], limit: int) -> list[T]:
    """Run coroutines, ``limit`` at a time; results in order."""
    gate = asyncio.Semaphore(limit)

    async def run(coroutine: Coroutine[Any, Any, T]) -> T:
        async with gate:
            return await coroutine

    return await asyncio.gather(*(run(coroutine) for coroutine in work))


def stream_all(url: str, bodies: Sequence[Body], *, limit: int = 16) -> list[Answer]:
    """The final piece of each streamed request, ``limit`` at a time."""

    async def run() -> list[Stream]:
        async with session() as http:
            return await gather_limited([stream(http, url, b) for b in bodies], limit)

    return [result.last for result in asyncio.run(run())]


def generate_all(url: str, bodies: Sequence[Body], *, limit: int = 16) -> list[Answer]:
    """The answers of requests that are not streamed, ``limit`` at a time."""

    async def run() -> list[Answer]:
        async with session() as http:
            return await gather_limited([generate(http, url, b) for b in bodies], limit)

    return asyncio.run(run())
