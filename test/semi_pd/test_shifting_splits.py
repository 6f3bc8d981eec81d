# SPDX-License-Identifier: Apache-2.0
"""Which splits the benchmark of a shifting load serves under."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _benchmark_on_path(repository: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(repository / "benchmark" / "semi_pd"))


@pytest.mark.parametrize(
    ("flags", "refused"),
    [
        (["--disjoint", "--static", "60/40", "80/100"], "80/100 overlaps"),
        (["--disjoint", "--favouring", "80/20", "50/100"], "50/100 overlaps"),
        (["--static", "80"], "two shares"),
        (["--more"], "no run is in"),
        (["--static", "5/95"], "two shares"),
    ],
)
def test_a_split_that_the_server_would_refuse_is_refused_at_once(
    flags: list[str],
    refused: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ["run", "--out", str(tmp_path / "out"), "--model-path", "none", *flags]
    with pytest.raises(SystemExit):
        importlib.import_module("shifting").main(asked)
    assert refused in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", [[], ["--disjoint"]])
def test_shares_are_disjoint_if_asked_for(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's flags, and splits that fit them."""
    shifting = importlib.import_module("shifting")
    asked: list[str] = []

    def system(name: str, flags: tuple[str, ...]) -> None:
        asked.extend(flags)
        raise OSError("this test starts none")

    monkeypatch.setattr(shifting, "System", system)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    shifting.main(["run", "--out", str(tmp_path), "--model-path", "none", *given])
    assert ("--enable-sm-overlap" in asked) is not bool(given)
    decode = int(asked[asked.index("--initial-decode-sm") + 1])
    assert (decode < 100) is bool(given)


def test_a_run_goes_on_with_the_load_it_had(tmp_path: Path) -> None:
    trial, load = (importlib.import_module(f"shifting_{n}") for n in ("trial", "load"))
    prefill, decode = load.PREFILL_HEAVY, load.DECODE_HEAVY
    stretches = [(decode, 4.0, 2.5), (prefill, 3.0, 6.0), (decode, 4.0, 2.5)]
    requests = load.arrivals([load.Stretch(*one) for one in stretches], seed=5)
    runs = [
        {"name": "controller", "attainment": 0.9, "stopped": None},
        {"name": "70/30", "attainment": None, "stopped": "given up"},
        {"name": "80/20", "attainment": None, "stopped": trial.OUT_OF_TIME},
    ]
    earlier = {
        "slo": {"ttft_ms": 900.0, "tpot_ms": 15.0},
        "rates": {"prefill_heavy": 3.0, "decode_heavy": 4.0},
        "edge_s": 2.5,
        "phase_s": 6.0,
        "requests": len(requests),
        "runs": runs,
    }
    (tmp_path / "shifting.json").write_text(json.dumps(earlier))
    flags = ["--out", str(tmp_path), "--model-path", "none", "--more", "--seed"]
    options = (
        importlib.import_module("shifting")._parser().parse_args(["run", *flags, "5"])
    )
    options.deadline = 0.0
    again = trial.Trial(options, None)
    assert again.recall() == requests
    assert [run["name"] for run in again.found["runs"]] == ["controller", "70/30"]
    options.seed = 6
    with pytest.raises(ValueError, match="--seed"):
        trial.Trial(options, None).recall()
