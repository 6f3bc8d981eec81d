# SPDX-License-Identifier: Apache-2.0
"""``semi-pd simulate --fleet``: which deployment of many GPUs serves a load best?"""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sglang.semi_pd.simulation.fleet_report import FleetReport
    from sglang.semi_pd.simulation.fleet_types import Deployment, FleetTrace
    from sglang.semi_pd.simulation.simulator_coefficients import SimulatorCoefficients
    from sglang.semi_pd.simulation.trace import Trace
    from sglang.semi_pd.slo_types import SLOConstraints


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to ``semi-pd simulate``."""
    group = parser.add_argument_group("fleet: --gpus up to 10,000, one TP rank each")
    group.add_argument(
        "--fleet",
        action="append",
        choices=("semi-pd", "plain", "xpyd"),
        help="what the GPUs do; repeat to compare; semi-pd takes every --split",
    )
    group.add_argument(
        "--prefill-gpus", type=int, action="append", metavar="X", help="of xpyd; repeat"
    )
    group.add_argument(
        "--routing",
        choices=("round-robin", "least-loaded", "cache-aware"),
        default="least-loaded",
    )
    group.add_argument("--turns", type=int, default=1, help="mean turns of a session")
    group.add_argument("--kv-bytes-per-token", type=int, default=131_072)
    group.add_argument(
        "--transfer-gb-per-s", type=float, default=40.0, help="of KV between GPUs"
    )


def run(
    options: argparse.Namespace,
    trace: Trace,
    constraints: SLOConstraints,
    coefficients: SimulatorCoefficients,
) -> int:
    """Simulate every deployment asked for."""
    from sglang.semi_pd.simulation.fleet_report import ASSUMPTIONS, simulate_fleet
    from sglang.semi_pd.simulation.fleet_types import FleetTrace

    requests = FleetTrace.without_sessions(trace)
    if options.turns > 1:
        requests = FleetTrace.with_turns(trace, options.turns, seed=options.seed)
    reports = []
    for deployment in _deployments(options):
        started_s = time.process_time()
        report = simulate_fleet(requests, deployment, constraints, coefficients)
        reports.append((report, time.process_time() - started_s))
    if options.json:
        runs = [{**report.as_dict(), "core_s": took_s} for report, took_s in reports]
        payload = {"runs": runs, "assumptions": ASSUMPTIONS}
        print(json.dumps(payload, indent=2))
        return 0
    _print(reports, requests, coefficients)
    print("Assumptions:")
    for assumption in ASSUMPTIONS:
        print(f"  - {assumption}")
    return 0


def _deployments(options: argparse.Namespace) -> list[Deployment]:
    from sglang.semi_pd.simulation.fleet_types import Deployment, Routing, Scheme
    from sglang.semi_pd.sm_allocation import SMAllocation

    found = []
    for name in options.fleet:
        scheme = Scheme(name)
        splits: list[SMAllocation | None] = [None]
        if scheme is Scheme.SEMI_PD:
            splits = [SMAllocation.parse(one) for one in options.split or ("90/100",)]
        halves = options.prefill_gpus or [max(1, options.gpus // 2)]
        counts = halves if scheme is Scheme.DISAGGREGATED else [0]
        found += [
            Deployment(
                scheme,
                options.gpus,
                split=split,
                prefill_gpus=count,
                routing=Routing(options.routing),
                kv_bytes_per_token=options.kv_bytes_per_token,
                transfer_bytes_per_s=1e9 * options.transfer_gb_per_s,
            )
            for split in splits
            for count in counts
        ]
    return found


def _print(
    reports: list[tuple[FleetReport, float]],
    trace: FleetTrace,
    coefficients: SimulatorCoefficients,
) -> None:
    print(f"{len(trace)} requests; step times: {coefficients.provenance[:100]}")
    print(
        f"{'deployment':>16}  {'TTFT P50/P90/P99 ms':>22}  "
        f"{'TPOT P50/P90/P99 ms':>20}  {'SLO':>6}  {'req/s':>8}  {'cached':>6}  "
        f"{'core s':>7}"
    )
    for report, took_s in reports:
        ttft, tpot = (
            "/".join(f"{value:.0f}" for value in (s.p50_ms, s.p90_ms, s.p99_ms))
            for s in (report.ttft, report.tpot)
        )
        print(
            f"{report.name:>16}  {ttft:>22}  {tpot:>20}  {report.slo_attainment:>6.1%}"
            f"  {report.request_throughput:>8.1f}  {report.cached_share:>6.1%}  "
            f"{took_s:>7.1f}"
        )
