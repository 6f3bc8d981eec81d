# SPDX-License-Identifier: Apache-2.0
"""Decode asks for pages and waits for an answer before it puts a request aside."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from sglang.semi_pd.memory.block_table import Answer, BlockTable
from sglang.semi_pd.utils import (
    InstanceRole,
    label_rid_hash,
    rid_hash,
    row_label,
)
from sglang.semi_pd.workers import room_request
from sglang.semi_pd.workers.messages import MakeRoom
from sglang.semi_pd.workers.room_request import RoomRequest
from table_processes import worker


@dataclass
class Scene:
    """A table with both workers, and what was asked."""

    table: BlockTable
    sent: list[MakeRoom] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.prefill = worker(self.table, InstanceRole.PREFILL)
        self.decode = worker(self.table, InstanceRole.DECODE)
        self.request = RoomRequest(self.decode, self.sent.append, int, 0)

    def answer(self, *, is_busy: bool = False) -> None:
        """Prefill answers the last question."""
        self.prefill.publish_answer(Answer(self.sent[-1].sequence, is_busy=is_busy))

    def waits(self, *, is_last: bool = False) -> bool:
        return self.request.must_wait(5, is_last=is_last)


@pytest.fixture
def scene():
    table = BlockTable.create(num_pages=8, num_rows=2, page_size=1)
    yield Scene(table)
    table.close()


def test_nothing_is_put_aside_before_the_answer(scene):
    for _ in range(10):
        assert scene.waits()
    assert scene.sent == [MakeRoom(5, 1)]  # asked once


def test_after_the_answer_there_is_one_more_try(scene):
    """The pages may have come between looking for them and reading the answer."""
    assert scene.waits()
    scene.answer()
    assert scene.waits()
    assert not scene.waits()
    assert scene.waits()  # the next shortage is a new question
    assert [one.sequence for one in scene.sent] == [1, 2]


def test_pages_that_come_end_the_question(scene):
    assert scene.waits()
    scene.request.satisfied()
    assert scene.waits()
    assert len(scene.sent) == 2
    scene.prefill.publish_answer(Answer(1, is_busy=False))  # to the first one
    assert scene.waits() and scene.waits() and scene.waits()


def test_the_last_request_waits_for_a_busy_prefill(scene):
    assert scene.waits(is_last=True)
    for _ in range(3):
        scene.answer(is_busy=True)
        assert scene.waits(is_last=True)
        assert scene.waits(is_last=True)  # asks again
    scene.answer(is_busy=False)
    assert scene.waits(is_last=True)
    assert not scene.waits(is_last=True)


def test_a_silent_prefill_is_not_waited_for_for_ever(scene, monkeypatch):
    assert scene.waits()
    monkeypatch.setattr(room_request, "ANSWER_TIMEOUT_S", 0.0)
    assert scene.waits()
    assert not scene.waits()


def test_ranks_go_on_together(scene):
    """This rank has seen the answer; another has not."""
    least = [room_request.NOT_YET]
    request = RoomRequest(
        scene.decode, scene.sent.append, lambda seen: min(seen, *least), 0
    )
    assert request.must_wait(5, is_last=False)
    scene.answer()
    assert request.must_wait(5, is_last=False) and request.must_wait(5, is_last=False)
    least[0] = room_request.ANSWERED_IDLE
    assert request.must_wait(5, is_last=False)
    assert not request.must_wait(5, is_last=False)


def test_asking_ahead_is_rate_limited_and_needs_no_answer(scene):
    for _ in range(100):
        scene.request.ask_ahead(3)
    assert scene.sent == [MakeRoom(3, 0)]
    scene.request.ask_ahead(0)
    assert len(scene.sent) == 1


def test_a_row_label_names_request_and_handover():
    labels = {row_label(rid, n) for rid in ("a", "b") for n in range(100)}
    assert len(labels) == 200
    assert all(0 < label < 2**64 for label in labels)
    assert {label_rid_hash(label) for label in labels} == {rid_hash("a"), rid_hash("b")}
    assert label_rid_hash(row_label("a", 70_000)) == rid_hash("a")
