# SPDX-License-Identifier: Apache-2.0
"""Semi-PD gives SGLang's answers: the same tokens, text, counters and log-probs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import client
import pytest
from client import Answer, Body
from compare import differences, logprobs, mismatches, unexplained
from harness import Server
from workload import IS_SOAK, LONGEST_PROMPT, greedy, lengths, mixed_requests, prompt

pytestmark = pytest.mark.server

PROMPTS = 200 if IS_SOAK else 60
MOST_EXPLAINED = 0.05
"""Share of prompts that may differ because plain SGLang differs from itself."""


def require_agreement(
    plain: Server, bodies: Sequence[Body], expected: list[Answer], got: list[Answer]
) -> None:
    """Every answer is plain SGLang's, or one on which it disagrees with itself."""
    found = mismatches(bodies, expected, got)
    wrong = unexplained(plain.url, bodies, found)
    print(f"{len(bodies)} requests, {len(found)} differ, {len(wrong)} unexplained")
    assert not wrong, "\n".join(str(one) for one in wrong[:10])
    assert len(found) <= MOST_EXPLAINED * len(bodies)


def test_greedy_tokens_under_load(plain: Server, semi_pd: Server) -> None:
    """Prompts of 1 to 1,500 tokens, 16 streams at a time."""
    bodies = mixed_requests(PROMPTS)
    expected = client.stream_all(plain.url, bodies)
    got = client.stream_all(semi_pd.url, bodies)
    require_agreement(plain, bodies, expected, got)


def test_greedy_tokens_without_streaming(plain: Server, semi_pd: Server) -> None:
    """The same, answered in one piece."""
    bodies = mixed_requests(PROMPTS // 3, seed=1)
    expected = client.generate_all(plain.url, bodies)
    got = client.generate_all(semi_pd.url, bodies)
    require_agreement(plain, bodies, expected, got)


def test_one_request_at_a_time(plain: Server, semi_pd: Server) -> None:
    """An idle server answers like a busy one."""
    bodies = mixed_requests(PROMPTS // 6, seed=2)
    expected = client.stream_all(plain.url, bodies, limit=1)
    got = client.stream_all(semi_pd.url, bodies, limit=1)
    require_agreement(plain, bodies, expected, got)


def test_answers_do_not_depend_on_company(semi_pd: Server) -> None:
    """The server agrees with itself: one request alone, and among others."""
    bodies = mixed_requests(24, seed=3)
    crowd = client.stream_all(semi_pd.url, bodies)
    alone = client.stream_all(semi_pd.url, bodies, limit=1)
    found = mismatches(bodies, crowd, alone)
    assert len(found) <= MOST_EXPLAINED * len(bodies), "\n".join(map(str, found))


def test_stream_pieces_grow_to_the_answer(semi_pd: Server) -> None:
    """No token is lost, repeated or reordered on the way."""
    body = greedy(prompt(300, seed=4), 48, ignore_eos=True)
    whole = semi_pd.generate(**body)

    async def run() -> client.Stream:
        async with client.session() as http:
            return await client.stream(http, semi_pd.url, body)

    streamed = asyncio.run(run())
    assert streamed.last["output_ids"] == whole["output_ids"]
    counts = [len(piece["output_ids"]) for piece in streamed.pieces]
    assert counts == sorted(counts) and counts[-1] == 48
    for piece in streamed.pieces:
        ids = piece["output_ids"]
        assert ids == whole["output_ids"][: len(ids)]
        assert piece["meta_info"]["completion_tokens"] == len(ids)


def logprob_requests(start: int, *, count: int = 12) -> list[Body]:
    """Requests for every kind of log-probability, from one prompt position on."""
    asked = {
        "return_logprob": True,
        "logprob_start_len": start,
        "top_logprobs_num": 5,
        "token_ids_logprob": [3, 42, 301],
    }
    sizes = lengths(count, seed=5, longest=LONGEST_PROMPT)
    sizes = [size for size in sizes if size > start]
    return [{**greedy(prompt(n, seed=n), 6), **asked} for n in sizes]


@pytest.mark.parametrize("start", [-1, 0, 100])
@pytest.mark.parametrize("send", [client.stream_all, client.generate_all])
def test_logprobs(
    plain: Server, semi_pd: Server, start: int, send: Callable[..., list[Answer]]
) -> None:
    """Log-probabilities of prompt and answer agree to 1e-4, streamed and not."""
    bodies = logprob_requests(start)
    expected = send(plain.url, bodies, limit=6)
    got = send(semi_pd.url, bodies, limit=6)
    require_agreement(plain, bodies, expected, got)
    found = [
        f"prompt of {len(body['input_ids'])}: {'; '.join(where[:3])}"
        for body, a, b in zip(bodies, expected, got, strict=True)
        if (where := differences(logprobs(a), logprobs(b)))
    ]
    assert not found, "\n".join(found)


def test_logprobs_among_requests_without(plain: Server, semi_pd: Server) -> None:
    """Some ask for log-probabilities, their neighbours in the batch do not.

    Without ``token_ids_logprob``: where only some requests of a batch have it, SGLang
    0.5.17 itself fails.
    """
    asking = logprob_requests(0)
    for body in asking:
        del body["token_ids_logprob"]
    quiet = mixed_requests(len(asking), seed=6, most_tokens=12)
    bodies = [body for pair in zip(asking, quiet, strict=True) for body in pair]
    expected = client.generate_all(plain.url, bodies)
    got = client.generate_all(semi_pd.url, bodies)
    require_agreement(plain, bodies, expected, got)
    found = [
        f"request {place}: {'; '.join(where[:3])}"
        for place, (a, b) in enumerate(zip(expected, got, strict=True))
        if (where := differences(logprobs(a), logprobs(b)))
    ]
    assert not found, "\n".join(found)


def test_meta_info_has_the_same_fields(plain: Server, semi_pd: Server) -> None:
    """A client finds what it finds in plain SGLang's answers, and no less."""
    body = {**greedy(prompt(20, seed=7), 4), "return_logprob": True}
    expected = plain.generate(**body)["meta_info"]
    got = semi_pd.generate(**body)["meta_info"]
    missing = sorted(expected.keys() - got.keys())
    assert not missing, f"not in the answer's meta_info: {missing}"


def test_times_are_in_order(semi_pd: Server) -> None:
    """The time stamps of an answer follow the way of its request.

    Not the end of its dispatch: that is stamped by the server's process when it
    has sent the request, and a worker may have begun with it by then.
    """
    meta = semi_pd.generate(**greedy(prompt(20, seed=8), 8))["meta_info"]
    way = (
        "request_received_ts",
        "forward_entry_time",
        "prefill_finished_time",
        "request_finished_ts",
        "response_sent_to_client_ts",
    )
    times = [meta[name] for name in way]
    since = {name: round(meta[name] - times[0], 3) for name in way}
    assert times == sorted(times), since
    assert times[0] <= meta["api_server_dispatch_finish_ts"] <= times[-1], meta
    assert 0 <= meta["queue_time"] <= meta["forward_entry_time"] - times[0], meta
