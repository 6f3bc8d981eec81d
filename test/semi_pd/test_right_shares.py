# SPDX-License-Identifier: Apache-2.0
"""Choosing a split of shares that compute right; the probing itself needs a GPU."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from sglang.semi_pd.errors import ConfigError
from sglang.semi_pd.launch.start_progress import StartProgress
from sglang.semi_pd.partition import right_shares
from sglang.semi_pd.partition.right_shares import (
    CANDIDATES,
    RightShares,
    best,
    offered,
    ranked,
    require,
)
from sglang.semi_pd.sm_allocation import LEAST_PERCENTAGE, SMAllocation

RIGHT_ON_H200 = (100, 95, 90, 50, 30, 25, 10, 5)
H200 = {share: share in RIGHT_ON_H200 for share in CANDIDATES}


@pytest.mark.parametrize(
    ("wanted", "mode", "expected"),
    [
        ("70/30", "disjoint", "50/50"),
        ("90/10", "disjoint", "90/10"),
        ("85/15", "disjoint", "90/10"),
        ("30/70", "disjoint", "50/50"),
        ("80/100", "overlap", "90/100"),
        ("100/100", "overlap", "100/100"),
    ],
)
def test_best_split_on_an_h200(wanted: str, mode: str, expected: str) -> None:
    is_overlap = mode == "overlap"
    split = best(SMAllocation.parse(wanted), H200, allow_overlap=is_overlap)
    assert str(split) == expected


def test_where_all_is_right_the_wanted_split_is_the_best() -> None:
    everywhere = dict.fromkeys(H200, True)
    for split in (SMAllocation(70, 30), SMAllocation(10, 90)):
        assert best(split, everywhere, allow_overlap=False) == split


def test_a_controller_is_offered_splits_of_right_shares_only() -> None:
    here = SMAllocation(50, 50)
    divided = ["10/90", "25/50", "30/50", "50/50", "90/10"]
    assert sorted(map(str, offered(here, H200, allow_overlap=False))) == divided
    overlapping = {str(s) for s in offered(here, H200, allow_overlap=True)}
    assert overlapping - set(divided) == {f"{x}/100" for x in RIGHT_ON_H200 if x >= 10}


def test_where_no_pair_fits_only_the_split_in_force_is_offered() -> None:
    """None at all would say that any split can be had."""
    here = SMAllocation(100, 100)
    assert offered(here, {50: False, 100: True}, allow_overlap=False) == (here,)
    assert offered(here, {}, allow_overlap=True) == (here,)


def test_no_candidate_is_under_the_least_share() -> None:
    assert min(CANDIDATES) == LEAST_PERCENTAGE


def test_no_split_without_a_right_share() -> None:
    with pytest.raises(ConfigError, match="No split"):
        best(SMAllocation(70, 30), {70: False, 100: True}, allow_overlap=False)
    assert ranked(SMAllocation(70, 30), {}, allow_overlap=True) == []


def test_refusal_names_the_wrong_share_and_the_nearest_splits() -> None:
    with pytest.raises(ConfigError) as refused:
        require(SMAllocation(70, 30), H200, allow_overlap=False)
    assert "at 70 %" in str(refused.value)
    assert "50/50, 90/10, 10/90" in str(refused.value)
    require(SMAllocation(50, 50), H200, allow_overlap=False)


def test_a_share_without_an_answer_is_refused_but_not_called_wrong() -> None:
    with pytest.raises(ConfigError) as refused:
        require(SMAllocation(60, 30), {30: True}, allow_overlap=False)
    assert "no answer came when it was tried at 60 %" in str(refused.value)
    assert "wrong" not in str(refused.value)
    with pytest.raises(ConfigError, match="wrong on this GPU at 70 %; no answer"):
        require(SMAllocation(70, 20), {70: False}, allow_overlap=False)


class Daemon:
    """The environment of an MPS client, where no daemon is needed."""

    def client_environment(self, percentage: int) -> dict[str, str]:
        return {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": str(percentage)}


@pytest.fixture
def probe_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts a program in the probe's place right at 50, wrong at 70, else silent."""
    log, program = tmp_path / "log", tmp_path / "program.py"
    program.write_text(
        "import sys, json\n"
        f"open({str(log)!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
        "for share in map(int, sys.argv[2:]):\n"
        "    if share in (50, 70):\n"
        "        error = 2e-3 if share == 50 else 0.4\n"
        "        print(json.dumps({'share': share, 'sms': 66, 'error': error}))\n"
    )
    monkeypatch.setattr(right_shares.matrix_products, "__file__", str(program))
    return log


def test_verdicts_are_tried_once_and_kept(probe_log: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "shares.json"
    shares = RightShares(Daemon(), 3, cache)  # type: ignore[arg-type]
    assert shares.verdicts([50, 70]) == {50: True, 70: False}
    again = RightShares(Daemon(), 3, cache)  # type: ignore[arg-type]
    assert again.verdicts([70, 50]) == {70: False, 50: True}
    assert probe_log.read_text() == "3 50 70\n"
    assert os.stat(cache.parent).st_mode & 0o777 == 0o700
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]


def test_a_share_without_an_answer_is_tried_again_at_the_next_start(
    probe_log: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not known to be wrong: the GPU may have been busy, or its memory full."""
    cache = tmp_path / "shares.json"
    for _ in range(2):
        shares = RightShares(Daemon(), 0, cache)  # type: ignore[arg-type]
        assert shares.verdicts([50, 60]) == {50: True}
        assert shares.verdicts([60]) == {}, "not tried twice in one start"
        assert shares.are_right([50])
        assert not shares.are_right([50, 60])
    assert probe_log.read_text() == "0 50 60\n0 60\n"
    assert "tried again at the next start: no answer at 60 %" in caplog.text


def test_hosts_of_two_kinds_keep_their_verdicts_in_one_home(
    probe_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for asked in (50, 70):
        for kind in ("H100", "H200"):
            monkeypatch.setattr(right_shares, "machine_key", lambda kind=kind: kind)
            RightShares(Daemon(), 0, tmp_path / "shares.json").verdicts([asked])  # type: ignore[arg-type]
    assert json.loads((tmp_path / "shares.json").read_text()) == {
        kind: {"50": True, "70": False} for kind in ("H100", "H200")
    }


def test_shares_are_counted_as_they_answer(
    probe_log: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress = StartProgress()
    progress.begin("starting")
    monkeypatch.setattr(right_shares.start_progress, "enter", progress.enter)
    RightShares(Daemon(), 0, tmp_path / "shares.json").verdicts([50, 70, 60])  # type: ignore[arg-type]
    progress.end()
    bars = [line.partition("[")[2] for line in capsys.readouterr().err.splitlines()]
    assert bars[1:] == ["...] 0 of 3", "#..] 1 of 3", "##.] 2 of 3"]


def test_a_probe_that_hangs_leaves_what_it_has_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import time\n"
        """print('{"share": 50, "sms": 66, "error": 2e-3}', flush=True)\n"""
        "time.sleep(600)\n"
    )
    monkeypatch.setattr(right_shares.matrix_products, "__file__", str(program))
    monkeypatch.setattr(right_shares, "PROBE_TIMEOUT_S", 1.0)
    shares = RightShares(Daemon(), 0, tmp_path / "shares.json")  # type: ignore[arg-type]
    assert shares.verdicts([50, 70]) == {50: True}
    assert "no answer at 70 %: no answer in 1 s" in caplog.text


@pytest.mark.parametrize("content", ["", "[]", "{", '{"other": {"50": true}}'])
def test_a_cache_that_says_nothing_is_ignored(
    content: str, probe_log: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "shares.json"
    cache.write_text(content)
    assert RightShares(Daemon(), 0, cache).verdicts([50]) == {50: True}  # type: ignore[arg-type]


def test_probe_does_not_import_sglang() -> None:
    """It would take longer than everything else that it does."""
    source = Path(sys.modules["sglang.semi_pd.partition"].__path__[0])
    text = (source / "matrix_products.py").read_text()
    assert "sglang." not in text.split('"""', 2)[2]
