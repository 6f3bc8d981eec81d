# SPDX-License-Identifier: Apache-2.0
"""What workers know besides requests is known to those who come after them.

Grammars, control messages that wait for an answer, a pause.
"""

from __future__ import annotations

import asyncio
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import client
import pytest
import switching
from compare import differences, logprobs, mismatches
from disturb import killing, run
from harness import Server
from rehearsing import rotate
from workload import endless, prompt

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("needs_semi_pd")]

STREAMS, TOKENS = 8, 400
PATTERN = "([0-9]{2}[a-f]{3})+"
ANSWER_S = 120.0
PAUSED_S = 2.0
UNDER_WAY_S = 0.8
"""Then every stream of ``STREAMS`` has some tokens, and none has all."""


@pytest.fixture(scope="module")
def server(rotating: Server) -> Server:
    """As the trials call it."""
    return rotating


def test_grammars_go_on(server: Server) -> None:
    """Each token counts once: in the same worker, the next, and after a death."""
    bodies = [endless(prompt(60 + n, 90 + n), TOKENS) for n in range(STREAMS)]
    for body in bodies:
        body["sampling_params"]["regex"] = PATTERN
    expected = client.stream_all(server.url, bodies, limit=4)
    crowd = asyncio.run(switching.while_rotating(server.url, bodies))
    assert None in crowd.refusals, crowd
    assert not mismatches(bodies, expected, crowd.answers)
    with ThreadPoolExecutor() as pool:
        streams = pool.submit(client.stream_all, server.url, bodies, limit=STREAMS)
        run(server.url, killing("decode"), times=1, streams=1, tokens=200)
        assert not mismatches(bodies, expected, streams.result())


@pytest.mark.parametrize("of_the_prompt", [False, True])
def test_log_probabilities_go_on(server: Server, of_the_prompt: bool) -> None:  # noqa: FBT001
    """None is lost or given twice, of the answer nor of the prompt."""
    bodies = [endless(prompt(60 + n, 190 + n), TOKENS) for n in range(STREAMS)]
    for body in bodies:
        body |= {"return_logprob": True, "top_logprobs_num": 2}
        if of_the_prompt:
            body["logprob_start_len"] = 0
    expected = client.stream_all(server.url, bodies, limit=STREAMS)
    with ThreadPoolExecutor() as pool:
        streams = pool.submit(client.stream_all, server.url, bodies, limit=STREAMS)
        time.sleep(UNDER_WAY_S)
        server.role("decode").kill()
        assert not streams.done()
        answers = streams.result()
    assert not mismatches(bodies, expected, answers)
    for one, other in zip(expected, answers, strict=True):
        assert not differences(logprobs(one), logprobs(other))


def test_a_question_to_a_worker_that_dies_is_answered(server: Server) -> None:
    decode = server.role("decode")
    decode.send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(server.get, "/server_info", timeout_s=ANSWER_S)
        time.sleep(1.0)
        assert not asked.done()
        decode.kill()
        assert asked.result().status_code == 200
    assert server.get("/server_info", timeout_s=ANSWER_S).status_code == 200


def test_a_pause_outlasts_the_switch(server: Server) -> None:
    body = endless(prompt(80, 1), TOKENS)
    (expected,) = client.stream_all(server.url, [body], limit=1)

    async def pause_and_rotate() -> client.Answer:
        async with client.session() as http:
            stream = asyncio.create_task(client.stream(http, server.url, body))
            await asyncio.sleep(0.2)
            async with http.post(
                f"{server.url}/pause_generation", json={"mode": "in_place"}
            ) as reply:
                assert reply.status == 200
            assert await rotate(http, server.url, (50, 50)) is None
            await asyncio.sleep(PAUSED_S)
            assert not stream.done(), "it went on"
            async with http.post(f"{server.url}/continue_generation", json={}) as reply:
                assert reply.status == 200
            return (await stream).last

    answer = asyncio.run(pause_and_rotate())
    assert not mismatches([body], [expected], [answer])


def test_a_pause_that_would_retract_is_refused(server: Server) -> None:
    said = server.post("/pause_generation", {"mode": "retract"})
    assert said.status_code == 400 and "in_place" in said.text
