#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Does the controller hold SLOs that no split that stays can hold?

One green server. The load turns between prefill-heavy and decode-heavy; probes set
how heavy both are and the TPOT target (``shifting_probe``). Then the same requests
are served with the controller moving the split, under splits that stay, and undivided.
A split that stays is given up once it must end ten points below the best of those
before it: what it could have reached at most is reported then. Besides: the decode step
with the controller off and on. Everything is kept in ``shifting.json`` as it is
measured; what time did not suffice for, ``--more`` adds.

Caps may overlap, unless ``--disjoint`` gives each SM to one worker, as a server does
by default: then other splits are the likely ones, and only 100/100 may overlap.

    python benchmark/semi_pd/shifting.py run --out /tmp/shifting --budget 540 \\
        --model-path $MODEL --calibration .../h200_llama3_8b_green.json \\
        -- --load-format dummy --skip-tokenizer-init --disable-radix-cache
    python benchmark/semi_pd/shifting.py report --out /tmp/shifting
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import shifting_report
from shifting_client import Server
from shifting_trial import Trial
from systems import (
    NotReadyError,
    RunningServer,
    System,
    end_tidily,
    own_and_servers,
)

OVERLAPPING = {
    "favouring": ["90/100", "50/100"],
    "static": ["80/100", "100/100", "90/100", "70/100"],
}
DISJOINT = {
    "favouring": ["80/20", "40/60"],
    "static": ["70/30", "100/100", "80/20", "60/40", "50/50"],
}


def run(options: argparse.Namespace) -> None:
    """Start the server, measure, end it."""
    options.out.mkdir(parents=True, exist_ok=True)
    prefill, decode = options.static[0].split("/")
    flags = (
        *("--enable-semi-pd", "--sm-partition-backend", "green"),
        *(() if options.disjoint else ("--enable-sm-overlap",)),
        *("--initial-prefill-sm", prefill, "--initial-decode-sm", decode),
        *("--slo-decision-log", str(options.out / "decisions.jsonl")),
        *(("--slo-calibration", options.calibration) if options.calibration else ()),
    )
    server = RunningServer(
        System("server", flags), options.common, options.port, options.out
    )
    server.start(options.deadline - time.monotonic())
    try:
        print(f"ready after {server.ready_s:.0f} s", flush=True)
        trial = Trial(options, Server(server.url))
        trial.found["ready_s"] = server.ready_s
        trial.run()
    finally:
        server.stop()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser("run", help="measure, then report")
    report = commands.add_parser("report", help="print the table, draw the plots")
    for command in (measure, report):
        command.add_argument("--out", type=Path, required=True)
    measure.add_argument("--model-path", required=True)
    measure.add_argument("--calibration", help="speeds of splits, for the controller")
    measure.add_argument("--budget", type=float, default=3600.0, help="seconds in all")
    measure.add_argument("--slo-ttft", type=float, default=1200.0, help="milliseconds")
    measure.add_argument(
        "--more",
        action="store_true",
        help="go on with the run that is in --out, of the same machine: its load and "
        "targets, no probes, only what it did not complete",
    )
    measure.add_argument(
        "--disjoint", action="store_true", help="no SM is shared, but in 100/100"
    )
    measure.add_argument(
        "--favouring",
        nargs=2,
        metavar=("PREFILL", "DECODE"),
        help=f"splits that the probes run under; {_defaults('favouring')}",
    )
    measure.add_argument(
        "--static",
        nargs="+",
        metavar="SPLIT",
        help="splits that stay, the likeliest best first; the controller starts at "
        f"the first; {_defaults('static')}",
    )
    measure.add_argument("--phase-seconds", type=float, default=60.0)
    measure.add_argument(
        "--edge-seconds", type=float, default=30.0, help="before it and after it"
    )
    measure.add_argument(
        "--least-edge-seconds", type=float, default=20.0, help="where time is short"
    )
    measure.add_argument("--probe-seconds", type=float, default=9.0)
    measure.add_argument("--cost-rounds", type=int, default=5)
    measure.add_argument("--drain", type=float, default=12.0, help="after arrivals end")
    measure.add_argument("--vocabulary", type=int, default=100_000)
    measure.add_argument(
        "--shrink", type=int, default=1, help="divide all lengths by it"
    )
    measure.add_argument("--seed", type=int, default=0)
    measure.add_argument("--port", type=int, default=31000)
    return parser


def _defaults(name: str) -> str:
    overlapping, disjoint = " ".join(OVERLAPPING[name]), " ".join(DISJOINT[name])
    return f"default {overlapping}, or {disjoint} with --disjoint"


def _check(options: argparse.Namespace) -> None:
    """Fill in splits; ValueError names one that the server would refuse, say."""
    defaults = DISJOINT if options.disjoint else OVERLAPPING
    if options.more and not (options.out / shifting_report.FILE).exists():
        raise ValueError(f"--more: no run is in {options.out}")
    for name, splits in defaults.items():
        given = getattr(options, name) or splits
        setattr(options, name, given)
        for split in given:
            shares = [int(share) for share in split.split("/") if share.isdigit()]
            if len(shares) != 2 or not all(10 <= share <= 100 for share in shares):
                raise ValueError(f"--{name} {split}: two shares of 10 to 100 are meant")
            if options.disjoint and sum(shares) > 100 and split != "100/100":
                raise ValueError(
                    f"--{name} {split} overlaps, which --disjoint rules out"
                )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; what follows ``--`` are flags of the server."""
    began = time.monotonic()
    own, flags = own_and_servers(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    options = parser.parse_args(own)
    if options.command == "run":
        try:
            _check(options)
        except ValueError as error:
            parser.error(str(error))
        options.deadline = began + options.budget
        options.common = ["--model-path", options.model_path, *flags]
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        end_tidily()
        try:
            run(options)
        except (NotReadyError, OSError, RuntimeError, ValueError) as error:
            print(f"ended early: {error!r}", flush=True)
            if not (options.out / shifting_report.FILE).exists():
                return 1
    print(shifting_report.make(options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
