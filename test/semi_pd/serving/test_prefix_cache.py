# SPDX-License-Identifier: Apache-2.0
"""The prefix cache across the two workers: hits, pressure, and nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import client
import pytest
from chats import chats, hold
from compare import content, mismatches
from harness import COMMON_FLAGS, Server
from test_leaks import require_nothing_allocated
from workload import IS_SOAK, mixed_requests, prompt

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("needs_semi_pd")]

USERS, TURNS = 8, 6
QUESTION, ANSWER = (150, 60) if IS_SOAK else (80, 24)


def test_later_turns_hit_prompts_and_answers(plain: Server, semi_pd: Server) -> None:
    """One user: every turn but the first finds all that was said before."""
    found = []
    for server in (plain, semi_pd):
        server.flush_cache()
        (chat,) = chats(1, 4, question=120, answer=30, common=0, seed=40)
        hold(server.url, [chat], at_once=1)
        found.append((chat.answers, chat.cached_tokens))
    assert found[0] == found[1]
    said = 120 + 30
    assert found[1][1][1] >= said - 1, f"only prompts were hit: {found[1][1]}"


def test_hit_rate_of_chats(plain: Server, semi_pd: Server) -> None:
    """Eight users of six turns: the hit rate of plain SGLang, and the same tokens."""
    rates, answers = [], []
    for server in (plain, semi_pd):
        server.flush_cache()
        several = chats(
            USERS, TURNS, question=QUESTION, answer=ANSWER, common=200, seed=41
        )
        rates.append(hold(server.url, several, at_once=USERS))
        answers.append([one.answers for one in several])
    print(f"hit rate: {rates[0]:.4f} plain, {rates[1]:.4f} Semi-PD")
    assert answers[0] == answers[1]
    assert rates[1] > rates[0] - 0.02
    require_nothing_allocated(semi_pd)


def test_cached_tokens_are_reported(plain: Server, semi_pd: Server) -> None:
    """In ``meta_info`` and in the usage of the OpenAI route, as by SGLang."""
    body = {"input_ids": prompt(300, seed=42)}
    asked = {"model": "m", "prompt": prompt(300, seed=43), "max_tokens": 4}
    reports = []
    for server in (plain, semi_pd):
        server.flush_cache()
        first, again = (server.generate(**body)["meta_info"] for _ in range(2))
        assert (first["cached_tokens"], again["cached_tokens"]) == (0, 299)
        usages = [
            server.post("/v1/completions", {**asked, "temperature": 0}).json()["usage"]
            for _ in range(2)
        ]
        reports.append((first["cached_tokens"], again["cached_tokens"], usages))
    assert reports[0] == reports[1]


def test_flush_empties_the_cache(semi_pd: Server) -> None:
    """Blocks are cached after a request, and free after a flush."""
    semi_pd.generate(input_ids=prompt(200, seed=44))
    require_nothing_allocated(semi_pd)
    assert semi_pd.memory_usage()["blocks_by_state"]["cached"] >= 200
    semi_pd.flush_cache()
    usage = semi_pd.memory_usage()
    assert (usage["allocated_blocks"], usage["blocks_by_state"]["cached"]) == (0, 0), (
        usage
    )


@pytest.fixture(scope="module")
def small(tiny_model: Path, second_flags: list[str]) -> Iterator[Server]:
    """A Semi-PD server whose cache holds an eighth of what the chats say."""
    chat_tokens = TURNS * (QUESTION + ANSWER)
    pool = 2 * USERS * chat_tokens // 8
    server = Server(
        name="small",
        model=tiny_model,
        flags=[
            *COMMON_FLAGS,
            *second_flags,
            f"--max-total-tokens={pool}",
        ],
    )
    try:
        yield server.start().wait_ready()
        server.stop()
    finally:
        server.clean()


def test_a_pool_of_an_eighth(plain: Server, small: Server) -> None:
    """Eight users, two chats each: every request ends, with the same tokens."""
    answers = []
    for server in (plain, small):
        several = chats(
            2 * USERS, TURNS, question=QUESTION, answer=ANSWER, common=0, seed=45
        )
        rate = hold(server.url, several, at_once=USERS)
        print(f"{server.name}: hit rate {rate:.4f}")
        answers.append([one.answers for one in several])
    total = small.get("/server_info").json()["max_total_num_tokens"]
    assert total <= 2 * USERS * TURNS * (QUESTION + ANSWER) / 8
    assert answers[0] == answers[1]
    require_nothing_allocated(small)
    assert small.memory_usage()["audits_failed"] == 0


def test_a_prompt_as_large_as_the_pool(plain: Server, small: Server) -> None:
    """What decode keeps for itself is not in the way of a prompt while it is idle."""
    total = small.get("/server_info").json()["max_total_num_tokens"]
    small.flush_cache()
    asked = {"input_ids": prompt(total - 20, seed=48), "max_new_tokens": 8}
    assert content(small.generate(**asked)) == content(plain.generate(**asked))
    require_nothing_allocated(small)


def test_decode_outgrows_the_pool(plain: Server, small: Server) -> None:
    """Long answers: the cache is evicted, requests are put aside, all end right."""
    bodies = [
        {
            "input_ids": prompt(40, seed=n),
            "sampling_params": {
                "temperature": 0,
                "max_new_tokens": 300,
                "ignore_eos": True,
            },
        }
        for n in range(12)
    ]
    got = client.stream_all(small.url, bodies, limit=12)
    expected = client.stream_all(plain.url, bodies, limit=12)
    found = mismatches(bodies, expected, got)
    assert not found, "\n".join(map(str, found))
    require_nothing_allocated(small)


def test_without_a_prefix_cache(
    plain: Server, tiny_model: Path, second_flags: list[str]
) -> None:
    """``--disable-radix-cache``: the same tokens, no hit, nothing cached."""
    server = Server(
        name="no cache",
        model=tiny_model,
        flags=[*COMMON_FLAGS, *second_flags, "--disable-radix-cache"],
    )
    bodies = mixed_requests(24, seed=46)
    try:
        server.start().wait_ready()
        got = client.stream_all(server.url, bodies)
        again = server.generate(**bodies[-1])
        assert content(again) == content(got[-1])
        assert again["meta_info"]["cached_tokens"] == 0
        require_nothing_allocated(server)
        assert server.memory_usage()["allocated_blocks"] == 0
        server.stop()
    finally:
        server.clean()
    found = mismatches(bodies, client.stream_all(plain.url, bodies), got)
    assert not found, "\n".join(map(str, found))


def test_unified_memory_alone(plain: Server, tiny_model: Path) -> None:
    """One ordinary scheduler: the same tokens and hits, and its usage is reported."""
    server = Server(
        name="unified",
        model=tiny_model,
        flags=[*COMMON_FLAGS, "--enable-unified-memory"],
    )
    found = []
    try:
        server.start().wait_ready()
        for one in (plain, server):
            one.flush_cache()
            several = chats(4, 3, question=QUESTION, answer=ANSWER, common=50, seed=47)
            rate = hold(one.url, several, at_once=1)
            found.append((rate, [chat.answers for chat in several]))
        require_nothing_allocated(server)
        usage = server.memory_usage()
        assert usage["blocks_by_state"]["cached"] == usage["allocated_blocks"] > 0
        assert usage["total_memory_bytes"] > usage["allocated_memory_bytes"] > 0
        server.flush_cache()
        assert server.memory_usage()["allocated_blocks"] == 0
        server.stop()
    finally:
        server.clean()
    assert found[0] == found[1]
