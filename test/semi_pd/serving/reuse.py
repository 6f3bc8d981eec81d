# SPDX-License-Identifier: Apache-2.0
"""Clients that use one request id again and again, each time for another prompt.

A request ends by itself or is aborted; beside them are clients that leave. What a
request came to must be what the same prompt gives under an id of its own.

An id that comes back is asked for an answer in one piece: SGLang aborts the id of a
streamed one 2 s after its end, and forgets a client that leaves before its request has
ended: whoever has the id next is aborted, or gets the rest of that one's tokens.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import aiohttp
import client
import workload

POLL_S, SENT_S = 0.01, 0.2
LONG = 800
"""Tokens of a request that is not to end by itself."""


@dataclass(frozen=True)
class Use:
    """One request under an id; ``began`` and ``ended`` as ``time.monotonic()``."""

    rid: str
    is_aborted: bool
    input_ids: list[int]
    output_ids: list[int]
    finish: str
    began: float
    ended: float

    @property
    def is_as_meant(self) -> bool:
        """It ended as it was to end."""
        return self.finish == ("abort" if self.is_aborted else "length")

    def runs(self, at: float) -> bool:
        """Whether it was under way at a moment."""
        return self.began < at < self.ended


class Clients:
    """Some clients, each with an id of its own, and some that leave.

    Args:
        longest: prompt.
        aborted: share of the requests that do not end by themselves.
    """

    def __init__(  # noqa: PLR0913 - clients differ in that much
        self,
        http: aiohttp.ClientSession,
        url: str,
        *,
        count: int,
        seed: int,
        longest: int = 400,
        aborted: float = 0.5,
    ) -> None:
        self._http, self._url = http, url
        self._longest, self._aborted = longest, aborted
        self._is_over = False
        self._began: dict[str, float] = {}
        self.uses: list[Use] = []
        self._tasks = [
            asyncio.create_task(self._use_again(f"again-{n:02d}", seed + n))
            for n in range(count)
        ]
        self._leaving = [
            asyncio.create_task(self._leave(count + n, seed + count + n))
            for n in range(count // 4)
        ]

    async def all_again(self, since: float) -> None:
        """Return when every id has another request than at a moment."""
        while len(self._began) < len(self._tasks) or min(self._began.values()) < since:
            await asyncio.sleep(POLL_S)

    async def finish(self) -> list[Use]:
        """No more requests; all that were made."""
        self._is_over = True
        await asyncio.gather(*self._tasks, *self._leaving)
        return self.uses

    async def _use_again(self, rid: str, seed: int) -> None:
        source = random.Random(seed)
        while not self._is_over:
            is_aborted = source.random() < self._aborted
            body = self._body(source, LONG if is_aborted else source.randint(5, 60))
            self._began[rid] = began = time.monotonic()
            work = client.generate(self._http, self._url, {**body, "rid": rid})
            answer = asyncio.create_task(work)
            if is_aborted:
                # Two: after the first, this loop has sent it, however busy it was. Of
                # what the server has not read yet it knows nothing to abort.
                await asyncio.sleep(SENT_S)
                await asyncio.sleep(source.uniform(SENT_S, 4 * SENT_S))
                await client.abort(self._http, self._url, rid)
            has_ended = answer.done()
            got = await answer
            finish = got["meta_info"]["finish_reason"]["type"]
            if has_ended:  # by itself perhaps, before the abort came
                is_aborted = finish == "abort"
            input_ids, ended = body["input_ids"], time.monotonic()
            use = (rid, is_aborted, input_ids, got["output_ids"], finish, began, ended)
            self.uses.append(Use(*use))

    async def _leave(self, place: int, seed: int) -> None:
        source, count = random.Random(seed), 0
        while not self._is_over:
            pieces, count = source.randint(1, 40), count + 1
            rid = f"leaves-{place}-{count}-"  # no other begins like this
            body = {**self._body(source, LONG), "rid": rid, "stream": True}
            events = client.events(self._http, f"{self._url}/generate", body)
            async for _ in events:
                pieces -= 1
                if not pieces:
                    break
            await events.aclose()

    def _body(self, source: random.Random, tokens: int) -> client.Body:
        length = source.randint(5, self._longest)
        return workload.endless(workload.prompt(length, source.getrandbits(32)), tokens)


def wrong(url: str, uses: Iterable[Use]) -> list[str]:
    """Those that did not come to what their prompt gives, undisturbed.

    A single token of an aborted one may have come of a part of its prompt.
    """
    asked = [use for use in uses if not use.is_aborted or len(use.output_ids) > 1]
    bodies = [workload.endless(u.input_ids, len(u.output_ids)) for u in asked]
    expected = client.generate_all(url, bodies, limit=8)
    return [
        f"{use.rid}: prompt of {len(use.input_ids)}, {len(use.output_ids)} tokens"
        for use, answer in zip(asked, expected, strict=True)
        if use.output_ids != answer["output_ids"]
    ]


def reused(uses: Sequence[Use], introduced: float, switched: float) -> set[str]:
    """The ids that one request had at one moment and another at a later one."""
    first = {use.rid for use in uses if use.runs(introduced) and use.ended < switched}
    return first & {u.rid for u in uses if u.runs(switched) and u.began > introduced}
