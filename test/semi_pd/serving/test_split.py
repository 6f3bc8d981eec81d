# SPDX-License-Identifier: Apache-2.0
"""The split moves while requests run, and the status says what was realised of it."""

from __future__ import annotations

import asyncio

import client
import pytest
from compare import content
from harness import Server
from workload import endless, prompt

pytestmark = pytest.mark.server

SPLITS = ((60, 40), (30, 70), (50, 50), (70, 30)) * 5


def test_moves_under_load_change_nothing(semi_pd: Server, needs_semi_pd: None) -> None:
    """Twenty moves while a stream runs: its tokens are those of an unmoved run."""
    body = endless(prompt(60, seed=11), 150)
    expected = content(semi_pd.generate(**body))["ids"]
    moved = semi_pd.get("/semi_pd/status").json()["process_rotation_status"]["moves"]

    async def run() -> client.Stream:
        async with client.session() as http:
            running = asyncio.create_task(client.stream(http, semi_pd.url, body))
            await asyncio.sleep(0.3)
            for prefill, decode in SPLITS:
                split = {"prefill_percentage": prefill, "decode_percentage": decode}
                url = f"{semi_pd.url}/semi_pd/reallocate"
                async with http.post(url, json=split) as reply:
                    assert reply.status == 200, await reply.text()
            return await running

    assert asyncio.run(run()).last["output_ids"] == expected
    status = semi_pd.get("/semi_pd/status").json()
    rotation = status["process_rotation_status"]
    assert status["partition_backend"] == "green"
    assert rotation["moves"] == moved + len(SPLITS)
    assert rotation["current_sm_allocation"] == {
        "prefill_percentage": 70,
        "decode_percentage": 30,
    }
    realised = status["realised_sm_share"]
    assert realised["measured_by"] in ("CPU time", "SM probe")
    assert 0 < realised["decode"]["percentage"] <= 100
    assert rotation["realised_sm_allocation"]["decode_percentage"] > 0
