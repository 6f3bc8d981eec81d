# SPDX-License-Identifier: Apache-2.0
"""What is put to the next worker: what was sent, and is still waited for."""

from __future__ import annotations

from sglang.semi_pd.server.open_questions import OpenQuestions


def test_only_what_was_sent_and_not_answered() -> None:
    questions, first, second = OpenQuestions(), ["flush"], ["flush"]
    with questions.until_answered(first):
        assert questions.unanswered() == [], "it waits for its turn"
        questions.note_sent(first)
        with questions.until_answered(second):
            (found,) = questions.unanswered()
            assert found is first, "they are equal, not the same"
            questions.note_sent(second)
            assert len(questions.unanswered()) == 2
        assert questions.unanswered() == [first]
    assert questions.unanswered() == []


def test_what_nobody_waits_for_is_forgotten() -> None:
    questions = OpenQuestions()
    questions.note_sent(["log level"])
    assert questions.unanswered() == []
