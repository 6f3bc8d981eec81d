# SPDX-License-Identifier: Apache-2.0
"""``semi-pd simulate --calibrate`` and ``--validate``: against a measured run."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sglang.semi_pd.simulation.calibration import Comparison
    from sglang.semi_pd.simulation.simulator_coefficients import SimulatorCoefficients


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to ``semi-pd simulate``."""
    group = parser.add_argument_group(
        "calibration: RUN is a file of benchmark/semi_pd/record_run.py, --split what "
        "the server had"
    )
    group.add_argument("--calibrate", type=Path, metavar="RUN", help="fit to this run")
    group.add_argument("--out", type=Path, metavar="FILE", help="where the fit goes")
    group.add_argument(
        "--validate",
        type=Path,
        metavar="RUN",
        help="compare predicted with measured; exit status 1 if a P90 is off",
    )
    group.add_argument(
        "--tolerance", type=float, default=0.15, help="of a P90 (default: 0.15)"
    )
    group.add_argument("--chunk-tokens", type=int, help="--chunked-prefill-size")


def run(options: argparse.Namespace, coefficients: SimulatorCoefficients) -> int:
    """Fit, compare, or both; returns the exit status."""
    from sglang.semi_pd.simulation.calibration import calibrate, compare
    from sglang.semi_pd.simulation.measured_run import MeasuredRun
    from sglang.semi_pd.sm_allocation import SMAllocation

    if not options.split or len(options.split) != 1:
        raise ValueError("give --split X/Y once: what the server had in the run")
    split = SMAllocation.parse(options.split[0])
    if options.chunk_tokens is not None:
        coefficients = replace(coefficients, chunk_tokens=options.chunk_tokens)
    if options.calibrate is not None:
        fitted_to = MeasuredRun.load(options.calibrate)
        coefficients = replace(
            calibrate(fitted_to, coefficients, split),
            provenance=f"fitted to {options.calibrate.name}, {len(fitted_to.trace)} "
            f"requests under {split}; other splits relative to it as in: "
            f"{coefficients.provenance}",
        )
        if options.out is not None:
            text = json.dumps(coefficients.as_dict(), indent=2)
            options.out.write_text(text + "\n", encoding="utf-8")
    judged_by = options.validate or options.calibrate
    comparisons = compare(MeasuredRun.load(judged_by), coefficients, split)
    _print(comparisons, judged_by.name, as_json=options.json)
    is_off = any(
        abs(one.error) > options.tolerance
        for one in comparisons
        if one.name.endswith("P90")
    )
    return int(is_off)


def _print(comparisons: list[Comparison], name: str, *, as_json: bool) -> None:
    if as_json:
        rows = [
            {
                "name": one.name,
                "predicted_ms": one.predicted_ms,
                "measured_ms": one.measured_ms,
                "error": one.error,
            }
            for one in comparisons
        ]
        print(json.dumps({"run": name, "comparisons": rows}, indent=2))
        return
    print(f"{name:>16}  {'predicted ms':>12}  {'measured ms':>12}  {'error':>7}")
    for one in comparisons:
        print(
            f"{one.name:>16}  {one.predicted_ms:>12.1f}  {one.measured_ms:>12.1f}  "
            f"{one.error:>+7.1%}"
        )
