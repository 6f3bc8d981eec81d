# SPDX-License-Identifier: Apache-2.0
"""Every sampling parameter means what it means in plain SGLang."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import client
import pytest
from client import Answer, Body
from compare import content, differences, logprobs, mismatches
from harness import Server
from sampling_cases import GREEDY, PROMPT, REFUSED, SAMPLED, base_request
from workload import mixed_requests

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def probe(plain: Server) -> Answer:
    """Plain SGLang's answer that the cases are made from."""
    return plain.generate(**base_request())


def answers(server: Server, body: Body) -> list[Answer]:
    """The same request three times, at once, with others around it."""
    others = mixed_requests(5, seed=8, most_tokens=16)
    company = [body, others[0], body, *others[1:], body]
    found = client.generate_all(server.url, company)
    return [found[0], found[2], found[-1]]


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_case(plain: Server, semi_pd: Server, probe: Answer, name: str) -> None:
    """One parameter, or a combination, without chance."""
    body = GREEDY[name](probe)
    expected = answers(plain, body)
    known = [content(one) for one in expected]
    for got in answers(semi_pd, body):
        assert content(got) in known, differences(known[0], content(got))
        if not isinstance(got, list) and body.get("return_logprob"):
            assert not differences(logprobs(expected[0]), logprobs(got))


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_case_streamed(
    plain: Server, semi_pd: Server, probe: Answer, name: str
) -> None:
    """The same, streamed: every piece of a batch carries its index."""
    body = GREEDY[name](probe)
    expected = last_pieces(plain, body)
    got = last_pieces(semi_pd, body)
    assert not differences(expected, got)


def last_pieces(server: Server, body: Body) -> dict[int, Any]:
    """The final piece of each answer in a streamed request."""

    async def run() -> dict[int, Any]:
        last: dict[int, Any] = {}
        async with client.session() as http:
            url = f"{server.url}/generate"
            async for piece in client.events(http, url, {**body, "stream": True}):
                assert "error" not in piece, piece
                last[piece.get("index", 0)] = content(piece)
        return last

    return asyncio.run(run())


@pytest.mark.parametrize("name", SAMPLED)
def test_sampled_case(plain: Server, semi_pd: Server, name: str) -> None:
    """Where plain SGLang repeats itself Semi-PD gives the same; else draws are fair.

    Fair means: of the right length, and every token among those that the filter leaves.
    """
    sampling = {"max_new_tokens": 12, "ignore_eos": True, **SAMPLED[name]}
    body = {"input_ids": PROMPT, "sampling_params": sampling}
    expected = client.generate_all(plain.url, [body] * 3, limit=1)
    got = client.generate_all(semi_pd.url, [body] * 3, limit=1)
    if not mismatches([body] * 3, [expected[0]] * 3, expected):
        assert not mismatches([body] * 3, expected, got)
    for answer in got:
        meta = answer["meta_info"]
        assert meta["finish_reason"] is not None
        assert meta["completion_tokens"] == len(answer["output_ids"])
        if "regex" in sampling:
            assert re.fullmatch(sampling["regex"], answer["text"]), answer["text"]
        if name == "top_k":
            assert worst_rank(plain, answer["output_ids"]) < sampling["top_k"]


def worst_rank(plain: Server, output_ids: list[int]) -> int:
    """The lowest place that any of the tokens has in plain SGLang's distribution."""
    reply = plain.generate(
        input_ids=[*PROMPT, *output_ids],
        max_new_tokens=1,
        return_logprob=True,
        logprob_start_len=len(PROMPT) - 1,
        top_logprobs_num=50,
    )
    ranked = reply["meta_info"]["input_top_logprobs"][-len(output_ids) :]
    return max(
        [entry[1] for entry in place].index(token)
        for place, token in zip(ranked, output_ids, strict=True)
    )


def test_samples_differ_from_each_other(semi_pd: Server) -> None:
    """Prefill and decode do not draw the same numbers again and again."""
    sampling = {"temperature": 1.5, "max_new_tokens": 12, "n": 8, "ignore_eos": True}
    body = {"input_ids": PROMPT, "sampling_params": sampling}
    drawn = semi_pd.post("/generate", body).json()
    assert len({tuple(one["output_ids"]) for one in drawn}) == 8


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input(plain: Server, semi_pd: Server, name: str) -> None:
    """Bad input gets plain SGLang's answer, and the server lives on."""
    expected = plain.post("/generate", REFUSED[name])
    got = semi_pd.post("/generate", REFUSED[name])
    assert got.status_code == expected.status_code, got.text[:500]
    if expected.status_code == 200:
        assert content(got.json()) == content(expected.json())
    else:
        assert got.text == expected.text
    semi_pd.generate(input_ids=PROMPT, max_new_tokens=2)
