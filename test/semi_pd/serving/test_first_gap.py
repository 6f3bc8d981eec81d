# SPDX-License-Identifier: Apache-2.0
"""The second token follows the first as the others follow each other."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from statistics import median

import client
import pytest
from harness import Server
from workload import endless, prompt

pytestmark = pytest.mark.server

REQUESTS, TOKENS = 60, 40
APART_S = 0.06
"""Each joins while others run."""
MOST = 1.6
"""Of the first gap, relative to the others: two steps would be 2."""


def test_the_first_gap_is_no_longer_than_others(semi_pd: Server) -> None:
    streams = asyncio.run(arriving(semi_pd.url))
    gaps = [[b - a for a, b in pairwise(one.arrivals)] for one in streams]
    first = 1e3 * median(one[0] for one in gaps)
    others = 1e3 * median(gap for one in gaps for gap in one[1:])
    print(f"first gap {first:.2f}, others {others:.2f} ms (P50)")
    assert first <= MOST * others


async def arriving(url: str) -> list[client.Stream]:
    async with client.session() as http:
        tasks = []
        for seed in range(REQUESTS):
            body = endless(prompt(30, seed), TOKENS)
            tasks.append(asyncio.create_task(client.stream(http, url, body)))
            await asyncio.sleep(APART_S)
        return await asyncio.gather(*tasks)
