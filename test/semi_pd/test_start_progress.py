# SPDX-License-Identifier: Apache-2.0
"""The phases of a start, as its owner sees them."""

from __future__ import annotations

import pickle
import time

import pytest
from sglang.semi_pd.errors import ConfigError, RotationError, WorkerStartError
from sglang.semi_pd.launch import start_progress
from sglang.semi_pd.launch.start_progress import Failure, StartProgress


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_phases_carry_the_seconds_and_who_is_in_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress = StartProgress()
    progress.begin("importing")
    progress.enter("loading the weights", "resident")
    progress.leave("ready", "resident")
    progress.end("ready: http://127.0.0.1:1")
    assert lines(capsys) == [
        "semi-pd:   0.0 s  main: importing",
        "semi-pd:   0.0 s  resident: loading the weights",
        "semi-pd:   0.0 s  resident: ready",
        "semi-pd:   0.0 s  ready: http://127.0.0.1:1",
    ]


def test_silence_is_broken_by_what_still_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start_progress, "SILENCE_S", 0.02)
    progress = StartProgress()
    progress.begin("waiting")
    progress.enter("loading the weights", "resident")
    progress.leave("ready", "prefill")
    time.sleep(0.2)
    progress.end()
    said = [line.partition("  ")[2] for line in lines(capsys)]
    assert any(
        line.endswith("still main: waiting, resident: loading the weights")
        for line in said
    ), said


def test_nothing_is_said_unless_a_command_line_began_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress = StartProgress()
    progress.enter("importing")
    progress.leave("ready", "prefill")
    progress.end("ready")
    progress.enter("after the end")
    assert not lines(capsys)


def test_a_failure_travels_as_it_was_said() -> None:
    """An error of ours whole, another by its kind and words."""
    refusal = ConfigError("a is refused", why="b", mend="c")
    heard = pickle.loads(pickle.dumps(Failure.of(refusal))).as_error("who")
    assert isinstance(heard, ConfigError)
    assert heard.in_one_line() == "a is refused: b; c"
    other = Failure.of(RuntimeError("of two\n  lines")).as_error("the resident")
    assert isinstance(other, WorkerStartError)
    assert other.what == "the resident cannot start"
    assert other.why == "RuntimeError: of two lines"
    assert other.mend


def test_an_error_is_what_why_mend_and_where_to_read_on() -> None:
    error = RotationError("it is not in force", why="b", mend="c")
    assert str(error).splitlines() == [
        "it is not in force",
        "  why:  b",
        "  mend: c",
        "  docs: docs/semi_pd_guide.md#moving-the-split",
    ]
    assert str(RotationError("it is not in force")) == "it is not in force"
