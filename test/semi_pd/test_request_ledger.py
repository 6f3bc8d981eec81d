# SPDX-License-Identifier: Apache-2.0
"""Which requests are given up when pair after pair of workers dies."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.upstream


class Answered:
    """A ledger with one request, and how many tokens its client has."""

    def __init__(self) -> None:
        from sglang.semi_pd.server.request_ledger import RequestLedger
        from test_succession import resume

        self.state: Any = SimpleNamespace(output_ids=[], finished=False)
        manager: Any = SimpleNamespace(rid_to_state={"r": self.state})
        self.ledger = RequestLedger(manager)
        self.ledger.note(resume().request)

    def dies(self, *, had_begun: bool = True, tokens: int = 0) -> bool:
        """A pair that has sent so many tokens; whether the request goes on."""
        self.state.output_ids += [1] * tokens
        given_up = self.ledger.give_up_hopeless(had_begun=had_begun)
        assert len(given_up) + len(self.ledger.resumptions()) == 1
        return not given_up


def test_a_request_that_sees_a_fourth_pair_die_is_given_up() -> None:
    one = Answered()
    assert [one.dies() for _ in range(4)] == [True, True, True, False]


def test_a_token_in_between_begins_anew() -> None:
    one = Answered()
    assert all(one.dies(tokens=turn % 3 == 0) for turn in range(20))
    assert one.dies()
    assert not one.dies()


def test_pairs_that_had_not_begun_say_nothing() -> None:
    one = Answered()
    assert one.dies(tokens=5)
    assert all(one.dies(had_begun=False) for _ in range(20))
    assert [one.dies() for _ in range(3)] == [True, True, False]
