# SPDX-License-Identifier: Apache-2.0
"""The semi-pd command as a user runs it: a process of its own, without SGLang."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sglang.semi_pd.control.decision_log import encode_line
from slo_plant import snapshot_of
from test_replay import record_of

PYTHON = Path(__file__).parents[2] / "python"
POISSON = ("simulate", "--poisson", "10", "--requests", "200", "--split", "70/30")


CONTROLLED = ("--controller", "70/30", "--slo-monitoring-interval")


def semi_pd(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PYTHON / "semi_pd_cli.py"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("command", [(), ("simulate",), ("replay",), ("top",)])
def test_help_starts_in_under_a_second(command: tuple[str, ...]) -> None:
    times_s = []
    for _ in range(3):
        started_s = time.perf_counter()
        result = semi_pd(*command, "--help")
        times_s.append(time.perf_counter() - started_s)
        assert result.returncode == 0
    print(f"semi-pd {' '.join(command)} --help: {min(times_s):.2f} s")
    assert min(times_s) < 1.0


def test_it_runs_neither_sglang_nor_torch() -> None:
    code = (
        "import sys, semi_pd_cli; semi_pd_cli.use_light_namespace()\n"
        "import sglang.semi_pd.cli.command_simulate\n"
        "import sglang.semi_pd.simulation.simulation\n"
        "import sglang.semi_pd.cli.command_top\n"
        "import sglang.semi_pd.monitoring.terminal_view\n"
        "import sglang.semi_pd.simulation.replay, sglang.semi_pd.slo_algorithm\n"
        "print([m for m in ('torch', 'zmq', 'sglang.srt', 'sglang.lang')"
        " if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PYTHON,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.stdout.strip() == "[]", result.stderr


def test_simulate_prints_a_line_per_split() -> None:
    result = semi_pd(*POISSON, "--split", "100/100", "--controller", "50/50")
    assert result.returncode == 0, result.stderr
    names = [line.split()[0] for line in result.stdout.splitlines()[1:4]]
    assert names == ["70/30", "100/100", "controlled"]


def test_simulate_reads_a_trace_and_writes_json(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    row = {"arrival_s": 0.0, "input_length": 100, "output_length": 10}
    trace.write_text(json.dumps(row) + "\n")
    result = semi_pd("simulate", str(trace), "--split", "60/40", "--json")
    (run,) = json.loads(result.stdout)["runs"]
    assert run["requests"] == 1
    assert run["slo_attainment"] == 1.0


def test_simulate_draws(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / "plot.png"
    assert semi_pd(*POISSON, "--plot", str(plot)).returncode == 0
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_that_it_cannot_draw_is_said_before_it_simulates(tmp_path: Path) -> None:
    code = (
        "import sys, semi_pd_cli; sys.modules['matplotlib'] = None\n"
        "sys.exit(semi_pd_cli.main())"
    )
    command = [sys.executable, "-c", code, *POISSON, "--plot", str(tmp_path / "p.png")]
    result = subprocess.run(
        command, cwd=PYTHON, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 2
    assert "--plot needs matplotlib" in result.stderr
    assert "Traceback" not in result.stderr
    assert not result.stdout


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (("simulate",), "TRACE or --poisson"),
        (("simulate", "--poisson", "-1"), "--poisson must be positive"),
        ((*POISSON, "--split", "70"), "'70' is not a split"),
        ((*POISSON, "--slo-ttft-target", "0"), "ttft_target_ms"),
        ((*POISSON, "--gpus", "0"), "--gpus"),
        ((*POISSON, "--gpus", "2", "--controller", "70/30"), "drop --gpus"),
        ((*POISSON, *CONTROLLED, "0"), "interval must be positive"),
        ((*POISSON, *CONTROLLED, "-1"), "interval must be positive"),
        ((*POISSON, *CONTROLLED, "nan"), "interval must be positive"),
        ((*POISSON, *CONTROLLED, "inf"), "interval must be positive"),
        ((*POISSON, "--calibration", "/nowhere"), "is not a calibration"),
        (("replay", "/nowhere"), "/nowhere"),
    ],
)
def test_mistakes_are_explained(arguments: tuple[str, ...], wrong: str) -> None:
    result = semi_pd(*arguments)
    assert result.returncode == 2
    assert wrong in result.stderr
    assert "Traceback" not in result.stderr


def test_replay_shows_the_difference(tmp_path: Path) -> None:
    log = tmp_path / "decisions.jsonl"
    log.write_text(encode_line(record_of(snapshot_of(900.0, 10.0))) + "\n")
    same = semi_pd("replay", str(log))
    assert (same.returncode, same.stdout) == (0, "1 decisions, 0 differ\n")
    other = semi_pd("replay", str(log), "--policy", "static:50/50")
    assert other.returncode == 1
    assert "line 1" in other.stdout
    counted = semi_pd("replay", str(log), "--slo-ttft-target", "2000", "--json")
    (difference,) = json.loads(counted.stdout)["differences"]
    assert difference["replayed_reason"] == "slo_met"
