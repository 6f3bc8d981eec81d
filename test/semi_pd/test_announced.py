# SPDX-License-Identifier: Apache-2.0
"""A request that decode builds while its prompt is being computed."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.upstream


@dataclass
class Request:
    """What is read of a request by who is told of it."""

    rid: str


def built(rid: str) -> Any:
    return SimpleNamespace(rid=rid)


def handover(rid: str) -> Any:
    from sglang.semi_pd.workers.messages import Handover, Loan, PrefillTimes

    return Handover(
        request_id=rid,
        request=None,
        loan=Loan(0, 1, 0),
        committed_tokens=1,
        output_ids=[1],
        sent_tokens=0,
        is_settled=False,
        cached_tokens=0,
        logprob=None,
        times=PrefillTimes(0.0, 0.0, 0.0),
        handed_over_at=0.0,
    )


def acquaintances() -> Any:
    from sglang.semi_pd.workers.introduction import Acquaintances

    return Acquaintances()


def test_a_handover_has_what_was_announced() -> None:
    announced, request, req = acquaintances(), Request("a"), built("a")
    announced.expect(request)
    announced.keep(req)
    known, found = announced.complete(handover("a"))
    assert known.request is request
    assert found is req


def test_one_that_is_still_being_built_is_waited_for() -> None:
    announced, request = acquaintances(), Request("a")
    announced.expect(request)
    known, req = announced.complete(handover("a"))
    assert known.request is request
    assert req is None


def test_what_is_not_coming_is_forgotten() -> None:
    announced = acquaintances()
    announced.expect(Request("a"))
    announced.keep(built("a"))
    announced.drop("a")
    announced.keep(built("a"))  # its grammar was compiled later
    announced.drop("never announced")
    with pytest.raises(KeyError):
        announced.complete(handover("a"))
