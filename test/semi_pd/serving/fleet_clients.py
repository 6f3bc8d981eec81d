# SPDX-License-Identifier: Apache-2.0
"""Clients of a fleet: under load, and in conversations of many turns."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import client
from client import Body, RequestFailedError

WORDS = ("river", "stone", "light", "answer", "window", "paper", "garden", "silver")
CLIENTS = 4
PAUSE_S = 0.1


@dataclass
class Attempt:
    """One request of a client, and how it ended."""

    is_stream: bool
    started: float = field(default_factory=time.monotonic)
    instance: str | None = None
    error: str | None = None


@dataclass
class Load:
    """Clients that ask, pause and ask again until they are told to stop."""

    url: str
    pause_s: float = PAUSE_S
    attempts: list[Attempt] = field(default_factory=list)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Load]:
        async with client.session() as http:
            tasks = [asyncio.create_task(self._client(http, n)) for n in range(CLIENTS)]
            try:
                yield self
            finally:
                self._stop.set()
                await asyncio.gather(*tasks)

    async def _client(self, http: aiohttp.ClientSession, number: int) -> None:
        source = random.Random(number)
        while not self._stop.is_set():
            attempt = Attempt(is_stream=source.random() < 0.5)
            body = request(sentence(source, 20), tokens=source.randint(8, 48))
            try:
                async for meta in self._answers(http, attempt, body):
                    attempt.instance = meta["weight_version"]
            except (aiohttp.ClientError, RequestFailedError) as error:
                attempt.error = f"{type(error).__name__}: {error}"[:200]
            self.attempts.append(attempt)
            await asyncio.sleep(self.pause_s)

    async def _answers(
        self, http: aiohttp.ClientSession, attempt: Attempt, body: Body
    ) -> AsyncIterator[Any]:
        if not attempt.is_stream:
            yield (await client.generate(http, self.url, body))["meta_info"]
            return
        url, finished = f"{self.url}/generate", None
        async for piece in client.events(http, url, {**body, "stream": True}):
            finished = piece["meta_info"]["finish_reason"]
            yield piece["meta_info"]
        if finished is None:
            raise RequestFailedError("the stream broke off")

    def served_by(self, moment: float) -> set[str | None]:
        """Which instances answered requests that began after a moment."""
        return {attempt.instance for attempt in self.served_since(moment)}

    def served_since(self, moment: float) -> list[Attempt]:
        """Requests that began after a moment and succeeded."""
        return [a for a in self.attempts if a.started > moment and a.error is None]


def request(text: str, *, tokens: int) -> Body:
    parameters = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
    return {"text": text, "sampling_params": parameters}


def sentence(source: random.Random, words: int) -> str:
    return " ".join(source.choices(WORDS, k=words)) + ". "


async def until(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not after {timeout_s:.0f} s"
        await asyncio.sleep(0.1)


def hit_rate(url: str, conversations: int = 6, turns: int = 5) -> float:
    """Cached over all prompt tokens of conversations that take turns together."""
    sources = [random.Random(f"talk-{n}") for n in range(conversations)]
    histories = [sentence(source, 12) for source in sources]
    cached = prompted = 0
    for _ in range(turns):
        bodies = [request(history, tokens=12) for history in histories]
        answers = client.generate_all(url, bodies, limit=conversations)
        for place, answer in enumerate(answers):
            meta = answer["meta_info"]
            cached += meta["cached_tokens"]
            prompted += meta["prompt_tokens"]
            histories[place] += answer["text"] + " " + sentence(sources[place], 6)
    return cached / prompted
