# SPDX-License-Identifier: Apache-2.0
"""The simulator fitted to a run predicts another one; bad files are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sglang.semi_pd.cli.command_line import main
from sglang.semi_pd.errors import ConfigError
from sglang.semi_pd.simulation import client_view
from sglang.semi_pd.simulation.calibration import (
    calibrate,
    calibrate_jointly,
    compare,
)
from sglang.semi_pd.simulation.measured_run import MeasuredRun
from sglang.semi_pd.simulation.simulator import InstanceSimulator
from sglang.semi_pd.simulation.simulator_coefficients import (
    BUILTIN,
    SimulatorCoefficients,
)
from sglang.semi_pd.simulation.trace import Trace
from sglang.semi_pd.sm_allocation import SMAllocation

H200 = SimulatorCoefficients.builtin()
SERVED = BUILTIN.with_name("h200_llama3_8b_green_served.json")
PROBES = Path(__file__).parent / "data"
SPLIT = SMAllocation(50, 50)
# Another machine: 40 times slower, with other proportions.
TRUTH = replace(
    H200,
    prefill_step_s=0.05,
    prefill_s_per_token=4e-4,
    decode_step_s=0.09,
    decode_s_per_request=2e-3,
    request_overhead_s=0.02,
    chunk_tokens=512,
)


def measured(seed: int) -> MeasuredRun:
    """What 200 clients of that machine would note, with 5 % noise."""
    trace = Trace.poisson(
        1.2, requests=200, input_length=400, output_length=40, seed=seed
    )
    instance = InstanceSimulator(trace, TRUTH, SPLIT)
    instance.advance()
    random = np.random.default_rng(seed)
    ttft_s = instance.first_token_s - trace.arrival_s + TRUTH.request_overhead_s
    decode_s = instance.completion_s - instance.first_token_s
    tpot_s = decode_s / np.maximum(1, trace.output_length - 1)
    noise = 1 + 0.05 * random.standard_normal((2, len(trace)))
    return MeasuredRun(trace, 1e3 * ttft_s * noise[0], 1e3 * tpot_s * noise[1])


def write(run: MeasuredRun, path: Path) -> Path:
    rows = zip(
        run.trace.arrival_s,
        run.trace.input_length,
        run.trace.output_length,
        run.ttft_ms,
        run.tpot_ms,
        strict=True,
    )
    names = ("arrival_s", "input_len", "output_len", "ttft_ms", "tpot_ms")
    lines = [json.dumps(dict(zip(names, map(float, row), strict=True))) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_fit_to_one_run_predicts_another() -> None:
    start = replace(H200, chunk_tokens=512)
    assert max(abs(one.error) for one in compare(measured(2), start, SPLIT)) > 0.5
    fitted = calibrate(measured(1), start, SPLIT)
    for one in compare(measured(2), fitted, SPLIT):
        assert abs(one.error) < 0.15, one


@pytest.mark.parametrize(("fitted", "judged"), [(15, 23), (23, 15)])
def test_one_measured_rate_predicts_another(
    fitted: int, judged: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """An H200 under 50/100, 15.6 and 23.5 requests per second; see docs/scaling.md.

    The second is what that split's prefill can just carry.
    """
    fit, judge = (
        str(PROBES / f"h200_50_100_{n}_per_s.jsonl") for n in (fitted, judged)
    )
    common = ["simulate", "--split", "50/100", "--calibration", str(SERVED)]
    assert main([*common, "--validate", judge, "--json"]) == 1  # it never saw 50/100
    capsys.readouterr()
    assert main([*common, "--calibrate", fit, "--validate", judge, "--json"]) == 0
    errors = {
        one["name"]: one["error"]
        for one in json.loads(capsys.readouterr().out)["comparisons"]
    }
    print(errors)
    assert max(abs(errors["TTFT P90"]), abs(errors["TPOT P90"])) < 0.15


def test_the_command_writes_a_calibration_and_judges_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (write(measured(n), tmp_path / f"{n}.jsonl") for n in (1, 2))
    out = tmp_path / "fit.json"
    common = ["simulate", "--split", "50/50", "--chunk-tokens", "512"]
    fit = [*common, "--calibrate", str(first), "--validate", str(second)]
    assert main([*fit, "--out", str(out)]) == 0
    assert "TTFT P90" in capsys.readouterr().out
    assert "fitted to 1.jsonl" in SimulatorCoefficients.load(out).provenance
    judge = [*common, "--validate", str(second), "--json"]
    assert main([*judge, "--calibration", str(out)]) == 0
    assert len(json.loads(capsys.readouterr().out)["comparisons"]) == 4
    assert main(judge) == 1  # the built-in step times are another machine's


def test_several_splits_are_fitted_together() -> None:
    """One machine under two splits: one set of step times reproduces both runs."""
    truth = replace(
        H200, interference=((50, 50, 2.2, 1.4, 2.5), (90, 100, 1.4, 3.0, 4.0))
    )
    runs = []
    for split in (SPLIT, SMAllocation(90, 100)):
        trace = Trace.poisson(10.0, requests=200, input_length=900, output_length=150)
        instance = InstanceSimulator(trace, truth, split)
        instance.advance()
        latencies = client_view.ttft_s(instance), client_view.tpot_s(instance)
        runs.append((MeasuredRun(trace, *(1e3 * one for one in latencies)), split))
    begin = replace(H200, interference=((50, 50, 1.9, 1.9), (90, 100, 1.8, 2.5)))
    fitted = calibrate_jointly(runs, begin)
    for run, split in runs:
        assert max(abs(one.error) for one in compare(run, begin, split)) > 0.15
        assert max(abs(one.error) for one in compare(run, fitted, split)) < 0.15


def test_records_are_read_and_refused(tmp_path: Path) -> None:
    path = write(measured(1), tmp_path / "run.jsonl")
    run = MeasuredRun.load(path)
    assert len(run.trace) == 200
    assert run.ttft_ms == pytest.approx(measured(1).ttft_ms)
    path.write_text('{"arrival_s": 1.0}\n')
    with pytest.raises(ConfigError, match="line 1"):
        MeasuredRun.load(path)
    path.write_text("")
    with pytest.raises(ConfigError, match="0 requests"):
        MeasuredRun.load(path)
