# SPDX-License-Identifier: Apache-2.0
"""From what ``compare.py run`` kept: one table, one JSON file, and plots."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from records import Record, Slo, attainment, goodput, read, summary
from steady import agreement

TUNED = "tuned"
REFERENCE = "default"
NO_PLOT = "no plot: matplotlib is not installed (pip install '.[plot]' in the clone)"

Runs = dict[str, dict[str, dict[float, list[Record]]]]
"""Records by system, load and rate."""

Run = tuple[str, float, str, list[Record]]
"""Load, rate, system, and what was recorded."""


def add_slo_options(parser: argparse.ArgumentParser) -> None:
    """The limits that a request is judged by, in milliseconds."""
    parser.add_argument("--slo-ttft", type=float, default=200.0)
    parser.add_argument("--slo-tpot", type=float, default=50.0)
    parser.add_argument("--slo-gap", type=float, default=25.0)


def slos(options: argparse.Namespace) -> tuple[Slo, Slo]:
    """The paper's form, and the one that sees stalls."""
    return (
        Slo("tpot", options.slo_ttft, tpot_ms=options.slo_tpot),
        Slo("gap", options.slo_ttft, gap_ms=options.slo_gap),
    )


def make(options: argparse.Namespace) -> str:
    """The table as text; ``report.json`` and plots beside the measurements."""
    runs, judged = _read_runs(options.out), slos(options)
    rows = [_row(run, judged) for run in _best_of(runs, judged)]
    steady = {
        path.parent.name: json.loads(path.read_text())
        for path in sorted(options.out.glob("*/steady.json"))
    }
    steady_rows = [_steady_row(name, steady) for name in steady]
    starts = {
        path.parent.name: json.loads(path.read_text())
        for path in sorted(options.out.glob("*/start.json"))
    }
    good = _goodputs(runs, judged)
    found = {"runs": rows, "goodput": good, "steady": steady_rows, "start": starts}
    (options.out / "report.json").write_text(json.dumps(found, indent=1))
    tables = [_markdown(part) for part in (rows, good, steady_rows) if part]
    return "\n\n".join([*tables, _plot(options.out, runs, judged)])


def _read_runs(out: Path) -> Runs:
    runs: Runs = {}
    for path in sorted(out.glob("*/*@*.jsonl")):
        load, _, rate = path.stem.partition("@")
        by_load = runs.setdefault(path.parent.name, {}).setdefault(load, {})
        by_load[float(rate)] = read(path)
    return runs


def _best_of(runs: Runs, judged: Sequence[Slo]) -> list[Run]:
    """All runs, sorted for reading; of the tuned systems only the best at each place.

    The best is inside the gap SLO most often, then has the shortest worst gap.
    """
    found: dict[tuple[str, float, str], tuple[tuple[float, float], str, Any]] = {}
    for system, by_load in runs.items():
        for load, by_rate in by_load.items():
            for rate, records in by_rate.items():
                family = TUNED if system.startswith(TUNED) else system
                gap = summary(records, ())["worst_gap_ms_p99"]
                score = (attainment(records, judged[-1]), -gap)
                best = found.get((load, rate, family))
                if best is None or score > best[0]:
                    found[load, rate, family] = score, system, records
    return [
        (load, rate, system, records)
        for (load, rate, _), (_, system, records) in sorted(found.items())
    ]


def _row(run: Run, judged: Sequence[Slo]) -> dict[str, Any]:
    load, rate, system, records = run
    found = summary(records, judged)
    return {
        "load": f"{load} {rate:g}/s",
        "system": system,
        "requests": found["requests"],
        "failed": found["failed"],
        **{
            f"{label} P50/P90/P99": " / ".join(
                f"{found[f'{name}_p{percent}']:.0f}" for percent in (50, 90, 99)
            )
            for label, name in (
                ("TTFT", "ttft_ms"),
                ("TPOT", "tpot_ms"),
                ("worst gap", "worst_gap_ms"),
            )
        },
        **{
            f"in SLO ({slo.name})": f"{found[f'attainment_{slo.name}']:.3f}"
            for slo in judged
        },
    }


def _goodputs(runs: Runs, judged: Sequence[Slo]) -> list[dict[str, Any]]:
    rows = []
    for system, by_load in runs.items():
        for load, by_rate in by_load.items():
            row: dict[str, Any] = {"load": load, "system": system}
            row["rates"] = " ".join(f"{rate:g}" for rate in sorted(by_rate))
            for slo in judged:
                shares = {rate: attainment(r, slo) for rate, r in by_rate.items()}
                row[f"goodput ({slo.name})"] = goodput(shares)
            rows.append(row)
    return sorted(rows, key=lambda row: (row["load"], row["system"]))


def _steady_row(name: str, steady: dict[str, Any]) -> dict[str, Any]:
    own = steady[name]
    row: dict[str, Any] = {"system": name}
    for batch, step in own["step_ms"].items():
        row[f"step at {batch}, ms"] = f"{step:.2f}"
    for length, times in own["first_token_ms"].items():
        row[f"TTFT of {length}, P50/P99"] = f"{times['p50']:.1f} / {times['p99']:.1f}"
    for form, answers in own["answers"].items():
        row[f"{form}, as itself"] = _agreement(answers[0], answers[1])
        if REFERENCE in steady:
            other = steady[REFERENCE]["answers"][form][0]
            row[f"{form}, as {REFERENCE}"] = _agreement(answers[0], other)
    return row


def _agreement(left: Any, right: Any) -> str:
    found = agreement(left, right)
    return f"{found['answers']}/{found['of']}, {found['tokens']:.3f}"


def _markdown(rows: Sequence[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---"] * len(names)]
    lines += [[str(row.get(name, "")) for name in names] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plot(out: Path, runs: Runs, judged: Sequence[Slo]) -> str:
    """One picture for each load: worst gap and TTFT over the rate, all systems."""
    try:
        import matplotlib
    except ImportError:
        return NO_PLOT
    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = []
    for load in sorted({load for by_load in runs.values() for load in by_load}):
        figure, panels = pyplot.subplots(1, 3, figsize=(15, 4.5))
        shown = ("ttft_ms_p90", "worst_gap_ms_p99", f"attainment_{judged[-1].name}")
        for panel, name in zip(panels, shown, strict=True):
            for system, by_load in sorted(runs.items()):
                rates = sorted(by_load.get(load, ()))
                values = [summary(by_load[load][r], judged)[name] for r in rates]
                if rates and not all(map(math.isnan, values)):
                    panel.plot(rates, values, marker="o", label=system)
            panel.set(xlabel="requests a second", title=f"{load}: {name}")
        panels[0].legend(fontsize="small")
        path = out / f"{load}.png"
        figure.tight_layout()
        figure.savefig(path, dpi=110)
        pyplot.close(figure)
        drawn.append(path.name)
    return "plots: " + (", ".join(drawn) or "none")
