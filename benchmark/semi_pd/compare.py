#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measure SGLang and Semi-PD on the same machine, one system after the other.

Every system is started with the same model and flags, gets the same requests, and is
ended. What is measured is kept at once, and what is there is not measured again, so a
comparison can be spread over several calls with the same ``--out``.

    python benchmark/semi_pd/compare.py run --out /tmp/compare --model-path $MODEL \\
        --systems default semi-pd-green-80-100 --loads mixed long \\
        -- --load-format dummy --skip-tokenizer-init --random-seed 1
    python benchmark/semi_pd/compare.py report --out /tmp/compare
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import report
from loads import LOADS, Load, miniature
from records import GOOD_ENOUGH, Slo, attainment, read, summary, write
from steady import Steady
from systems import (
    SYSTEMS,
    NotReadyError,
    RunningServer,
    System,
    end_tidily,
    gpu_memory_mib,
    named,
    own_and_servers,
)

STEP_BATCHES = (1, 32, 128)
TTFT_PROMPTS = (256, 1024, 4096)


class Comparison:
    """What is measured of one server, kept in files."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._deadline = time.monotonic() + options.budget
        self._slos = report.slos(options)

    def run(self) -> None:
        """Measure every system that was asked for, until the time is up."""
        for system in self._options.systems:
            name = system.name
            if (
                self._is_complete(name)
                or self._left() < self._options.start_timeout / 2
            ):
                continue
            try:
                self._measure_system(system)
            except (NotReadyError, OSError, RuntimeError) as error:
                self._say(f"{name}: {error}")
                self._keep(name, "failed", {"why": str(error)})

    def _measure_system(self, system: System) -> None:
        options, name = self._options, system.name
        server = RunningServer(
            system, options.common, options.port, options.out / "logs"
        )
        server.start(min(options.start_timeout, max(1.0, self._left())))
        try:
            self._keep(
                name,
                "start",
                {"ready_s": server.ready_s, "gpu_memory_mib": gpu_memory_mib()},
            )
            self._say(f"{name}: ready after {server.ready_s:.0f} s, {gpu_memory_mib()}")
            if options.steady:
                self._steady(name, server.url)
            for load in options.loads:
                self._measure_load(name, server, load)
        finally:
            server.stop()

    def _steady(self, name: str, url: str) -> None:
        if self._has(name, "steady"):
            return
        options = self._options
        steady = Steady(
            url, vocabulary=options.vocabulary, seed=options.seed, shrink=options.shrink
        )
        found: dict[str, Any] = {"answers": steady.answers(repeats=2)}
        batches = STEP_BATCHES if options.shrink == 1 else STEP_BATCHES[:1]
        found["step_ms"] = {batch: steady.step_ms(batch) for batch in batches}
        found["first_token_ms"] = {
            length: steady.first_token_ms(length, repeats=30 // options.shrink + 1)
            for length in TTFT_PROMPTS
        }
        self._keep(name, "steady", found)
        self._say(f"{name}: steps {found['step_ms']} TTFT {found['first_token_ms']}")

    def _measure_load(self, name: str, server: RunningServer, load: Load) -> None:
        rates = load.rates
        if self._options.search:
            for slo in self._slos:
                self._search(name, server, load, slo, rates[0])
            return
        for rate in rates:
            self._measure_rate(name, server, load, rate)

    def _search(  # noqa: PLR0913 - what is searched, and where
        self, name: str, server: RunningServer, load: Load, slo: Slo, start: float
    ) -> None:
        """Narrow down the goodput: powers of two around ``start``, then bisection."""
        good, bad, rate = 0.0, math.inf, start
        while bad - good > self._options.precision * good or not good:
            records = self._measure_rate(name, server, load, rate)
            if records is None or rate < start / 16:
                return
            if attainment(records, slo) >= GOOD_ENOUGH:
                good = rate
                rate = 2 * rate if bad == math.inf else round((good + bad) / 2, 2)
            else:
                bad = rate
                rate = round((good + bad) / 2, 2)

    def _measure_rate(
        self, name: str, server: RunningServer, load: Load, rate: float
    ) -> Any:
        """The records of one run, measured now or earlier; None if there is no time."""
        options = self._options
        path = self._path(name, f"{load.name}@{rate:g}", ".jsonl")
        if path.exists():
            return read(path)
        if self._left() < options.seconds + options.drain or not server.is_alive():
            return None
        from serving_client import run_load

        requests = load.requests(rate, options.seconds, options.seed)
        prompts = load.prompts(
            requests, rate=rate, seed=options.seed, vocabulary=options.vocabulary
        )
        records = run_load(server.url, requests, prompts, drain_s=options.drain)
        write(path, records)
        found = summary(records, self._slos)
        short = {key: round(value, 3) for key, value in found.items()}
        self._say(f"{name} {load.name}@{rate:g}: {short}")
        return records

    def _is_complete(self, name: str) -> bool:
        options = self._options
        wanted = [f"{one.name}@{rate:g}" for one in options.loads for rate in one.rates]
        have = all(self._path(name, run, ".jsonl").exists() for run in wanted)
        return (
            have
            and not options.search
            and (not options.steady or self._has(name, "steady"))
        )

    def _left(self) -> float:
        return self._deadline - time.monotonic()

    def _has(self, name: str, what: str) -> bool:
        return self._path(name, what, ".json").exists()

    def _keep(self, name: str, what: str, found: dict[str, Any]) -> None:
        self._path(name, what, ".json").write_text(json.dumps(found, indent=1))

    def _path(self, name: str, what: str, ending: str) -> Path:
        folder: Path = self._options.out / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder / (what + ending)

    def _say(self, text: str) -> None:
        print(f"[{self._left():6.0f} s left] {text}", flush=True)


def vocabulary_of(model_path: str) -> int:
    """Tokens of a model: SGLang ends if it is asked for others."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model_path)
    return int(config.get_text_config().vocab_size)


def load_at(text: str) -> Load:
    """A load by its name, at its own rates or at those that are named behind it.

    Raises:
        ArgumentTypeError: there is none of that name, or a rate is no number.
    """
    name, _, rates = text.partition(":")
    try:
        load = LOADS[name]
        asked = tuple(float(rate) for rate in rates.split(",") if rate)
    except (KeyError, ValueError):
        choices = ", ".join(LOADS)
        why = f"{text}: want NAME or NAME:RATE,RATE with one of {choices}"
        raise argparse.ArgumentTypeError(why) from None
    return dataclasses.replace(load, rates=asked or load.rates)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure")
    show = commands.add_parser("report", help="print the table, write JSON and plots")
    for command in (run, show):
        command.add_argument("--out", type=Path, required=True)
        report.add_slo_options(command)
    run.add_argument("--model-path", required=True)
    run.add_argument(
        "--systems",
        nargs="+",
        type=named,
        metavar="NAME",
        default=list(SYSTEMS.values()),
        help=f"of {', '.join(SYSTEMS)}; or semi-pd-green-75-40 and the like",
    )
    run.add_argument(
        "--loads",
        nargs="*",
        type=load_at,
        metavar="NAME[:RATE,RATE]",
        default=list(LOADS.values()),
        help=f"of {', '.join(LOADS)}; requests a second, or each load's own",
    )
    run.add_argument("--search", action="store_true", help="search the goodput")
    run.add_argument("--precision", type=float, default=0.15, help="of the search")
    run.add_argument("--seconds", type=float, default=20.0, help="of each run")
    run.add_argument("--drain", type=float, default=15.0, help="after its arrivals end")
    run.add_argument("--steady", action="store_true", help="steps, TTFT, answers too")
    run.add_argument("--vocabulary", type=int, help="ids below; or the model's")
    run.add_argument("--shrink", type=int, default=1, help="divide all lengths by it")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--port", type=int, default=31000)
    run.add_argument("--start-timeout", type=float, default=200.0)
    run.add_argument("--budget", type=float, default=86400.0, help="seconds in all")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; what follows ``--`` are flags of every server."""
    own, flags = own_and_servers(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(own)
    if options.command == "report":
        print(report.make(options))
        return 0
    options.common = ["--model-path", options.model_path, *flags]
    options.vocabulary = options.vocabulary or vocabulary_of(options.model_path)
    if options.shrink > 1:
        options.loads = [miniature(one, options.shrink) for one in options.loads]
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    end_tidily()
    Comparison(options).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
