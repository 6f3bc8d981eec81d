# SPDX-License-Identifier: Apache-2.0
"""A short prompt does not wait until a long one, which came first, is done."""

from __future__ import annotations

import asyncio

import client
import pytest
from harness import Server
from workload import LONGEST_PROMPT, endless, prompt

pytestmark = pytest.mark.server

LONG, SHORT, TOKENS = 4, 6, 8
APART_S = 0.005


def test_short_prompts_overtake_long_ones(semi_pd: Server) -> None:
    async def run() -> list[client.Stream]:
        async with client.session() as http:
            tasks = []
            for body in requests():
                one = client.stream(http, semi_pd.url, body)
                tasks.append(asyncio.create_task(one))
                await asyncio.sleep(APART_S)
            return await asyncio.gather(*tasks)

    first = [stream.arrivals[0] for stream in asyncio.run(run())]
    long, short = first[:LONG], first[LONG:]
    assert max(short) < max(long), "they waited behind all of them"
    assert sum(one < sorted(long)[-2] for one in short) >= SHORT // 2


def requests() -> list[client.Body]:
    lengths = [LONGEST_PROMPT] * LONG + [20] * SHORT
    return [endless(prompt(n, 900 + i), TOKENS) for i, n in enumerate(lengths)]
