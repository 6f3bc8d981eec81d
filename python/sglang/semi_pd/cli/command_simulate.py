# SPDX-License-Identifier: Apache-2.0
"""``semi-pd simulate``: what would clients see under other splits, rates or SLOs?"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglang.semi_pd.cli import simulate_calibration, simulate_fleet

if TYPE_CHECKING:
    from sglang.semi_pd.simulation.simulation import ControlledRun, SimulationReport
    from sglang.semi_pd.simulation.trace import Trace

_DEFAULT_SPLITS = ("100/100", "80/100", "80/20", "70/30", "60/40", "50/50")


def add_parser(subparsers: Any) -> None:
    """Add the sub-command to the command's parser."""
    parser = subparsers.add_parser(
        "simulate",
        help="predict latencies and SLO attainment of a trace under given splits",
        description="Predict TTFT, TPOT and the worst gap between two tokens with a "
        "discrete-event model of one instance. Without --calibration the model is an "
        "8B shape on one H200.",
    )
    _add_load(parser)
    _add_serving(parser)
    simulate_calibration.add_arguments(parser)
    simulate_fleet.add_arguments(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print one JSON object")
    output.add_argument("--plot", type=Path, metavar="FILE", help="needs matplotlib")
    parser.set_defaults(run=run)


def _add_load(parser: argparse.ArgumentParser) -> None:
    load = parser.add_argument_group("load: a trace file, or random arrivals")
    load.add_argument("trace", nargs="?", type=Path, metavar="TRACE", help="JSONL")
    load.add_argument("--poisson", type=float, metavar="RATE", help="requests per s")
    load.add_argument("--input", type=int, default=1024, help="mean prompt tokens")
    load.add_argument("--output", type=int, default=256, help="mean output tokens")
    load.add_argument("--requests", type=int, default=2000)
    load.add_argument("--seed", type=int, default=0)
    load.add_argument(
        "--rate-scale", type=float, default=1.0, help="arrivals this much denser"
    )
    load.add_argument(
        "--phase",
        action="append",
        metavar="RATE:IN:OUT",
        help="instead of --poisson: loads that take turns",
    )
    load.add_argument("--phase-seconds", type=float, default=60.0, metavar="S")
    load.add_argument("--repeats", type=int, default=3, help="turns of each phase")


def _add_serving(parser: argparse.ArgumentParser) -> None:
    serving = parser.add_argument_group("serving")
    serving.add_argument(
        "--split",
        action="append",
        metavar="X/Y",
        help="prefill/decode percent; repeat to compare",
    )
    serving.add_argument(
        "--controller",
        metavar="X/Y",
        help="also let one instance's controller start here",
    )
    serving.add_argument(
        "--offer",
        action="append",
        metavar="X/Y",
        help="a split the controller may choose, with the calibration's speeds; repeat",
    )
    serving.add_argument(
        "--move-cost", type=float, default=1e-4, metavar="S", help="of one move"
    )
    serving.add_argument(
        "--slo-mode", choices=("auto", "follow", "advise"), default="follow"
    )
    serving.add_argument("--slo-percentile", type=int, default=95)
    serving.add_argument("--enable-sm-overlap", action="store_true")
    serving.add_argument("--gpus", type=int, default=1, help="instances, round robin")
    serving.add_argument("--slo-ttft-target", type=float, default=100.0, metavar="MS")
    serving.add_argument("--slo-tpot-target", type=float, default=50.0, metavar="MS")
    serving.add_argument("--slo-monitoring-interval", type=float, default=10.0)
    serving.add_argument("--calibration", type=Path, metavar="FILE", help="JSON")


def run(options: argparse.Namespace) -> int:
    """Simulate every split asked for, and the controller if asked for."""
    from sglang.semi_pd.simulation.simulation import simulate
    from sglang.semi_pd.simulation.simulator_coefficients import SimulatorCoefficients
    from sglang.semi_pd.slo_types import SLOConstraints
    from sglang.semi_pd.sm_allocation import SMAllocation

    _require_sense(options)
    constraints = SLOConstraints(
        options.slo_ttft_target, options.slo_tpot_target, options.slo_percentile
    )
    coefficients = SimulatorCoefficients.builtin()
    if options.calibration is not None:
        coefficients = SimulatorCoefficients.load(options.calibration)
    if options.calibrate is not None or options.validate is not None:
        return simulate_calibration.run(options, coefficients)
    trace = _load_trace(options)
    if options.fleet:
        return simulate_fleet.run(options, trace, constraints, coefficients)
    reports = [
        simulate(
            trace,
            SMAllocation.parse(split),
            constraints,
            coefficients=coefficients,
            gpus=options.gpus,
        )
        for split in options.split or _DEFAULT_SPLITS
    ]
    controlled = None
    if options.controller:
        controlled = _run_controller(options, trace, constraints, coefficients)
        reports.append(controlled.report)
    _show(options, reports, controlled)
    return 0


def _require_sense(options: argparse.Namespace) -> None:
    """Refuse what cannot be simulated, or not be shown, before it takes time."""
    if options.gpus < 1:
        raise ValueError(f"--gpus must be at least 1, not {options.gpus}")
    if not 0 < options.slo_monitoring_interval < math.inf:
        raise ValueError("--slo-monitoring-interval must be positive")
    if options.controller and options.gpus > 1:
        raise ValueError("--controller moves the split of one instance: drop --gpus")
    if options.plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib: pip install matplotlib")


def _load_trace(options: argparse.Namespace) -> Trace:
    from sglang.semi_pd.simulation.trace import Phase, Trace

    loads = (options.trace, options.poisson, options.phase)
    if sum(load is not None for load in loads) != 1:
        raise ValueError("give one load: TRACE or --poisson RATE or --phase")
    positive = ("poisson", "input", "output", "requests", "rate_scale", "repeats")
    for name in (*positive, "phase_seconds"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name.replace('_', '-')} must be positive")
    if options.trace is not None:
        return Trace.load(options.trace).scaled(options.rate_scale)
    if options.phase is not None:
        return Trace.alternating(
            [Phase.parse(text) for text in options.phase],
            phase_s=options.phase_seconds,
            repeats=options.repeats,
            seed=options.seed,
        ).scaled(options.rate_scale)
    trace = Trace.poisson(
        options.poisson,
        requests=options.requests,
        input_length=options.input,
        output_length=options.output,
        seed=options.seed,
    )
    return trace.scaled(options.rate_scale)


def _run_controller(
    options: argparse.Namespace, trace: Trace, constraints: Any, coefficients: Any
) -> ControlledRun:
    from sglang.semi_pd.control.control_pace import ControlPace
    from sglang.semi_pd.simulation.simulation import simulate_controlled
    from sglang.semi_pd.slo_types import ControlMode
    from sglang.semi_pd.sm_allocation import SMAllocation

    overlap = options.enable_sm_overlap
    offers = [SMAllocation.parse(text) for text in options.offer or ()]
    pace = ControlPace.for_move(
        options.move_cost,
        interval_s=options.slo_monitoring_interval,
        window_s=30.0,
        speeds_are_known=bool(offers),
    )
    return simulate_controlled(
        trace,
        SMAllocation.parse(options.controller).validate(allow_overlap=overlap),
        constraints,
        limits=pace.limits(
            mode=ControlMode(options.slo_mode),
            allow_overlap=overlap,
            max_percentage=100 if overlap else 90,
            offers=coefficients.offers(offers),
        ),
        coefficients=coefficients,
        interval_s=pace.interval_s,
    )


def _show(
    options: argparse.Namespace,
    reports: list[SimulationReport],
    controlled: ControlledRun | None,
) -> None:
    if options.json:
        payload: dict[str, Any] = {"runs": [report.as_dict() for report in reports]}
        if controlled is not None:
            payload["controller_splits"] = [
                {"time_s": when_s, **split.as_dict()}
                for when_s, split in controlled.splits
            ]
        print(json.dumps(payload, indent=2))
    else:
        _print_table(reports)
        if controlled is not None:
            moves = ", ".join(f"{s} at {when:.0f} s" for when, s in controlled.splits)
            print(f"controller: {moves}")
    if options.plot is not None:
        from sglang.semi_pd.simulation.simulation_plot import plot_reports

        plot_reports(reports, options.plot)


def _print_table(reports: list[SimulationReport]) -> None:
    print(
        f"{'split':>10}  {'TTFT P50/P90/P99 ms':>22}  {'TPOT P50/P90/P99 ms':>20}  "
        f"{'worst gap P99 ms':>16}  {'SLO':>6}  {'req/s':>6}"
    )
    for report in reports:
        ttft, tpot = (
            "/".join(f"{value:.0f}" for value in (s.p50_ms, s.p90_ms, s.p99_ms))
            for s in (report.ttft, report.tpot)
        )
        print(
            f"{report.name:>10}  {ttft:>22}  {tpot:>20}  "
            f"{report.worst_gap.p99_ms:>16.0f}  {report.slo_attainment:>6.1%}  "
            f"{report.request_throughput:>6.1f}"
        )
