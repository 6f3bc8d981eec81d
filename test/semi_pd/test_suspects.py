# SPDX-License-Identifier: Apache-2.0
"""Which requests are given up when pair after pair of workers dies."""

from __future__ import annotations

import random
from collections.abc import Collection

import pytest
from sglang.semi_pd.server import suspects
from sglang.semi_pd.server.suspects import CHANCE, MOST_ALONE, Suspects

PROGRESS = suspects.LEAST_PROGRESS


class Service:
    """Requests, some of which bring each pair down that has them.

    Attributes:
        tokens: what clients have, by id; ended ones are not in it.
        deaths: pairs so far.
    """

    def __init__(self, rids: Collection[str], fatal: Collection[str]) -> None:
        self.tokens = dict.fromkeys(rids, 0)
        self.fatal = set(fatal)
        self.suspects = Suspects(self.tokens.get)
        self.deaths = 0
        self.given_up: list[str] = []

    def serve(self, most_deaths: int = 100) -> None:
        """Until a pair has all that are left, or too many have died."""
        waiting, with_pair = list(self.tokens), set()
        while waiting and self.deaths < most_deaths:
            chosen = self.suspects.next_of(waiting)
            assert chosen, "else nobody ever goes on"
            waiting = [rid for rid in waiting if rid not in chosen]
            with_pair |= set(chosen)
            if with_pair & self.fatal:
                waiting, with_pair = self.pair_dies(with_pair), set()
                continue
            for rid in chosen:
                self.tokens[rid] += PROGRESS
            assert self.suspects.are_cleared()

    def pair_dies(self, with_pair: Collection[str]) -> list[str]:
        """Give up whom it is due to; return those that are left."""
        self.deaths += 1
        guilty = self.suspects.saw_a_death(with_pair)
        if guilty is not None:
            self.given_up.append(guilty)
            del self.tokens[guilty]
        return list(self.tokens)


def test_a_request_that_sees_a_fifth_pair_die_is_given_up() -> None:
    service = Service(["it"], ["it"])
    service.serve()
    assert service.given_up == ["it"]
    assert service.deaths == CHANCE + MOST_ALONE == 5


@pytest.mark.parametrize("count", [2, 5, 16, 100])
@pytest.mark.parametrize("fatal", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_only_those_that_bring_workers_down_are_given_up(
    count: int, fatal: int, seed: int
) -> None:
    """Wherever they stand, and whoever has had tokens before."""
    source = random.Random(seed)
    rids = [str(number) for number in range(count)]
    guilty = source.sample(rids, fatal)
    service = Service(rids, guilty)
    for rid in rids:
        service.tokens[rid] = source.choice([0, 7, 300])
    service.serve()
    assert sorted(service.given_up) == sorted(guilty)
    halvings = count.bit_length() + 1
    assert service.deaths <= fatal * (CHANCE + MOST_ALONE + halvings)


def test_progress_in_between_begins_anew() -> None:
    service = Service(["it"], [])
    for turn in range(20):
        service.tokens["it"] += PROGRESS if turn % 3 == 0 else 0
        assert service.pair_dies(["it"]) == ["it"]


def test_the_token_that_prefill_gives_is_no_progress() -> None:
    """Else a request that brings decode down would take a pair for each token."""
    service = Service(["it"], [])
    lives = []
    for _ in range(CHANCE + MOST_ALONE):
        service.tokens["it"] += 1
        lives.append(bool(service.pair_dies(["it"])))
    assert lives == [True, True, True, True, False]


def test_one_death_says_nothing() -> None:
    service = Service(["a", "b", "c"], [])
    service.pair_dies(["a", "b", "c"])
    assert service.suspects.next_of(["a", "b", "c"]) == ["a", "b", "c"]


def test_those_that_were_not_there_are_not_suspected() -> None:
    service = Service(["a", "b", "new"], [])
    for _ in range(2):
        service.pair_dies(["a", "b"])
    assert service.suspects.next_of(["a", "new", "b"]) == ["new"]
    assert not service.suspects.are_cleared()
    service.tokens["new"] += PROGRESS
    assert service.suspects.are_cleared()
    assert service.suspects.next_of(["a", "b"]) == ["a"]
    assert not service.suspects.are_cleared()
    del service.tokens["a"]  # it has ended
    assert service.suspects.are_cleared()
    assert service.suspects.next_of(["b"]) == ["b"]


@pytest.mark.parametrize("seed", range(20))
def test_kills_from_outside_end_no_request(seed: int) -> None:
    """They strike two in five pairs before these have answered anything, and some more
    of them later."""
    source = random.Random(seed)
    rids = [str(number) for number in range(20)]
    service = Service(rids, [])
    waiting: list[str] = rids
    with_pair: set[str] = set()
    while service.deaths < 200:
        chosen = service.suspects.next_of(waiting)
        waiting = [rid for rid in waiting if rid not in chosen]
        danger = 0.1 if with_pair else 0.4
        with_pair |= set(chosen)
        struck = source.random() < danger
        if not struck:
            for rid in chosen:
                service.tokens[rid] += PROGRESS
        if struck or not waiting:
            waiting, with_pair = service.pair_dies(with_pair), set()
    assert not service.given_up


def test_a_pair_that_lives_long_is_in_no_danger(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = Service(["a", "b"], [])
    for _ in range(2):
        service.pair_dies(["a", "b"])
    service.suspects.next_of(["a", "b"])
    assert not service.suspects.are_cleared()
    monkeypatch.setattr(suspects, "TRIAL_S", 0.0)
    assert service.suspects.are_cleared()


def test_nothing_is_kept_of_those_that_have_ended() -> None:
    service = Service([str(number) for number in range(50)], [])
    service.pair_dies(list(service.tokens))
    service.tokens.clear()
    service.pair_dies([])
    assert not service.suspects._records
