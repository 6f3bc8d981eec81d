# SPDX-License-Identifier: Apache-2.0
"""``semi-pd replay``: what would another policy have decided?"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglang.semi_pd.simulation.replay import Difference, ReplayReport


def add_parser(subparsers: Any) -> None:
    """Add the sub-command to the command's parser."""
    parser = subparsers.add_parser(
        "replay",
        help="run recorded decisions through a policy, show where it differs",
        description="Run the decision lines of LOG through a policy and show where it "
        "would have chosen another split. Exit status 1 if it differs anywhere.",
    )
    parser.add_argument("log", type=Path, metavar="LOG", help="decision log (JSONL)")
    parser.add_argument(
        "--policy",
        default="controller",
        help="controller (default), listing (Algorithm 1 verbatim) or static:X/Y",
    )
    parser.add_argument("--slo-ttft-target", type=float, metavar="MS")
    parser.add_argument("--slo-tpot-target", type=float, metavar="MS")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Replay the log and print the differences."""
    from sglang.semi_pd.simulation.replay import named_policy, replay, with_targets

    policy = with_targets(
        named_policy(options.policy),
        ttft_target_ms=options.slo_ttft_target,
        tpot_target_ms=options.slo_tpot_target,
    )
    with options.log.open(encoding="utf-8") as lines:
        report = replay(lines, policy)
    if options.json:
        print(json.dumps(_as_dict(report), indent=2))
    else:
        _print(report)
    return 1 if report.differences else 0


def _print(report: ReplayReport) -> None:
    for number, wrong in report.unreadable:
        print(f"line {number}: skipped, {wrong}")
    for difference in report.differences:
        print(_line(difference))
    print(f"{report.decisions} decisions, {len(report.differences)} differ")


def _line(difference: Difference) -> str:
    return (
        f"line {difference.line}  t={difference.time_s:.1f} s  "
        f"at {difference.current}: recorded {difference.recorded} "
        f"({difference.recorded_reason.value}), now {difference.replayed} "
        f"({difference.replayed_reason.value})"
    )


def _as_dict(report: ReplayReport) -> dict[str, object]:
    return {
        "decisions": report.decisions,
        "differences": [
            {
                "line": difference.line,
                "time_s": difference.time_s,
                "current": difference.current.as_dict(),
                "recorded": difference.recorded.as_dict(),
                "recorded_reason": difference.recorded_reason.value,
                "replayed": difference.replayed.as_dict(),
                "replayed_reason": difference.replayed_reason.value,
            }
            for difference in report.differences
        ],
        "unreadable": [
            {"line": number, "why": why} for number, why in report.unreadable
        ],
    }
