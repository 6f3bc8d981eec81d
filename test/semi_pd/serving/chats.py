# SPDX-License-Identifier: Apache-2.0
"""Chats of several turns: each prompt is all that was said before, and a question."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import client
from workload import endless, prompt


@dataclass
class Chat:
    """One conversation: what is asked, and what came back."""

    questions: Sequence[Sequence[int]]
    answer_tokens: int
    answers: list[list[int]] = field(default_factory=list)
    prompt_tokens: list[int] = field(default_factory=list)
    cached_tokens: list[int] = field(default_factory=list)

    @property
    def hit_rate(self) -> float:
        """Share of all prompt tokens that came from the prefix cache."""
        return sum(self.cached_tokens) / sum(self.prompt_tokens)

    async def run(self, http: client.aiohttp.ClientSession, url: str) -> None:
        """Ask one question after the other."""
        said: list[int] = []
        for question in self.questions:
            said += question
            body = endless(said, self.answer_tokens)
            last = (await client.stream(http, url, body)).last
            assert last["meta_info"]["finish_reason"]["type"] == "length", last
            self.answers.append(last["output_ids"])
            self.prompt_tokens.append(last["meta_info"]["prompt_tokens"])
            self.cached_tokens.append(last["meta_info"]["cached_tokens"])
            said += last["output_ids"]


def chats(  # noqa: PLR0913 - keyword-only
    count: int, turns: int, *, question: int, answer: int, common: int, seed: int
) -> list[Chat]:
    """Chats that all begin with the same ``common`` tokens and then differ."""
    system = prompt(common, seed)
    return [
        Chat(
            [
                (system if turn == 0 else []) + prompt(question, first + turn)
                for turn in range(turns)
            ],
            answer,
        )
        for first in range(seed, seed + 100 * count, 100)
    ]


def hold(url: str, several: Sequence[Chat], *, at_once: int) -> float:
    """Hold the chats, so many at a time; returns the hit rate of all tokens."""

    async def run() -> None:
        async with client.session() as http:
            await client.gather_limited(
                [one.run(http, url) for one in several], at_once
            )

    asyncio.run(run())
    cached = sum(sum(one.cached_tokens) for one in several)
    return cached / sum(sum(one.prompt_tokens) for one in several)
