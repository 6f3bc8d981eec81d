# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of the benchmark: loads, SLOs, goodput, and the report."""

from __future__ import annotations

import importlib
import json
import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

SLOS = Namespace(slo_ttft=200.0, slo_tpot=50.0, slo_gap=25.0)


@pytest.fixture(autouse=True)
def on_path(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark's modules import each other as a program's do."""
    monkeypatch.syspath_prepend(str(repository / "benchmark" / "semi_pd"))


def module(name: str) -> Any:
    """Imported late: only then is the folder on the path."""
    return importlib.import_module(name)


def record(ttft: float, gap: float, tpot: float = 10.0, *, success: bool = True) -> Any:
    return module("records").Record(0.5, 100, 50, ttft, tpot, gap, success)


def test_one_seed_one_load_and_no_prompt_twice() -> None:
    load = module("loads").LOADS["mixed"]
    first, again = (load.requests(12, 20, seed=3) for _ in range(2))
    assert first == again
    assert first != load.requests(12, 20, seed=4)
    prompts = load.prompts(first, rate=12, seed=3, vocabulary=1000)
    other = load.prompts(first, rate=18, seed=3, vocabulary=1000)
    assert [len(prompt) for prompt in prompts] == [r.input_len for r in first]
    assert prompts[0][:20] != other[0][:20]
    assert all(10 <= token < 1000 for token in prompts[0])


@pytest.mark.parametrize("name", ["chat", "mixed", "long", "long-context", "shifting"])
def test_loads_have_the_rate_and_the_lengths_they_say(name: str) -> None:
    load = module("loads").LOADS[name]
    requests = load.requests(10, 400, seed=0)
    assert abs(len(requests) - 4000) < 5 * math.sqrt(4000)
    arrivals = [request.arrival_s for request in requests]
    assert arrivals == sorted(arrivals)
    means = {"chat": 250, "mixed": 1024, "long": 3000, "shifting": 1625}
    mean = sum(r.input_len for r in requests) / len(requests)
    assert abs(mean - means.get(name, 2450)) < 0.1 * mean


def test_a_miniature_keeps_arrivals() -> None:
    loads = module("loads")
    small = loads.miniature(loads.LOADS["long"], 100)
    full = loads.LOADS["long"].requests(5, 30, seed=1)
    tiny = small.requests(5, 30, seed=1)
    assert [r.arrival_s for r in tiny] == [r.arrival_s for r in full]
    assert max(r.input_len for r in tiny) <= 45


def test_a_stall_fails_the_gap_and_not_the_tempo() -> None:
    tpot, gap = module("report").slos(SLOS)
    stalled = record(150, 300)
    assert tpot.holds(stalled)
    assert not gap.holds(stalled)
    assert not tpot.holds(record(201, 5))
    assert not tpot.holds(record(10, 5, success=False))


def test_goodput_ends_at_the_first_bad_rate() -> None:
    goodput = module("records").goodput
    assert goodput({10: 0.99, 20: 0.95, 30: 0.5, 40: 0.92}) == 20
    assert goodput({10: 0.2, 20: 0.99}) == 0
    assert goodput({}) == 0


def test_records_come_back_as_written(tmp_path: Path) -> None:
    records = module("records")
    path = tmp_path / "run.jsonl"
    records.write(path, [record(1.5, 2.5), record(0, 0, success=False)])
    assert records.read(path) == [record(1.5, 2.5), record(0, 0, success=False)]
    first = json.loads(path.read_text().splitlines()[0])
    assert {"arrival_s", "input_len", "output_len", "ttft_ms"} <= first.keys()


def test_report_keeps_the_best_tuned_system(tmp_path: Path) -> None:
    records = module("records")
    gaps = {"default": 480, "tuned-mixed-512": 37, "tuned-mixed-1024": 20}
    for system, gap in gaps.items():
        (tmp_path / system).mkdir()
        records.write(tmp_path / system / "mixed@12.jsonl", [record(100, gap)] * 10)
    table = module("report").make(Namespace(out=tmp_path, **vars(SLOS)))
    runs = json.loads((tmp_path / "report.json").read_text())["runs"]
    assert [row["system"] for row in runs] == ["default", "tuned-mixed-1024"]
    assert "| mixed 12/s | default | 10 | 0 |" in table
    assert "goodput (gap)" in table


def test_agreement_counts_answers_and_tokens() -> None:
    agreement = module("steady").agreement
    found = agreement([[1, 2], [3, 4]], [[1, 2], [3, 5]])
    assert found == {"answers": 1, "of": 2, "tokens": 0.75}
