# SPDX-License-Identifier: Apache-2.0
"""The table and the plots of ``shifting.py``, from the file that it keeps."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from records import Record, Slo, attainment, percentile

FILE = "shifting.json"
BIN_S = 2.0
PROBES = ("prefill", "decode")


def make(out: Path) -> str:
    """Return the table; draw the plots where matplotlib is installed."""
    found = json.loads((out / FILE).read_text(encoding="utf-8"))
    if not found["runs"]:
        return "no run was measured"
    for run in found["runs"]:
        run["records"] = [Record(**one) for one in run["records"]]
    for number, run in enumerate(found.pop("probe", {}).get("records", [])):
        lines = "".join(json.dumps(one) + "\n" for one in run if one["success"])
        (out / f"{PROBES[number]}_probe.jsonl").write_text(lines, encoding="utf-8")
    with contextlib.suppress(ImportError):
        _draw(found, out / "shifting.svg")
    return _table(found)


def _table(found: dict[str, Any]) -> str:
    slo = _slo(found)
    rates = found["rates"]
    edge_s, phase_s = found["edge_s"], found["phase_s"]
    lines = [
        f"TTFT {slo.ttft_ms:.0f} ms, TPOT {slo.tpot_ms:.2f} ms; prefill-heavy "
        f"{rates['prefill_heavy']:.2f}/s, decode-heavy {rates['decode_heavy']:.2f}/s; "
        f"{found['requests']} requests",
        "",
        "| split | inside both | in the prefill-heavy part | in the decode-heavy one "
        "| TTFT P90 ms | TPOT P90 ms |",
        "|---|---|---|---|---|---|",
    ]
    for run in found["runs"]:
        records = run["records"]
        parts = {True: [], False: []}  # type: dict[bool, list[Record]]
        for one in records:
            parts[edge_s <= one.arrival_s < edge_s + phase_s].append(one)
        share = run["attainment"]
        total = (
            f"{share:.1%}" if share is not None else _stopped(run, found["requests"])
        )
        cells = [run["name"], total]
        cells += [f"{attainment(parts[key], slo):.1%}" for key in (True, False)]
        done = [one for one in records if one.success]
        for name in ("ttft_ms", "tpot_ms"):
            cells.append(f"{percentile([getattr(o, name) for o in done], 0.9):.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    cost = found.get("controller_cost")
    if cost:
        low, high = cost["difference_95"]
        lines += [
            "",
            f"decode step, controller off {cost['off_ms']:.3f} ms, on "
            f"{cost['on_ms']:.3f} ms; difference {low:+.2%} to {high:+.2%} (95 %)",
        ]
    return "\n".join(lines)


def _stopped(run: dict[str, Any], requests: int) -> str:
    """A run that did not go to its end, which is no result if time ended it."""
    sent = f"after {len(run['records'])} of {requests} requests"
    return f"at most {run['at_most']:.1%}, {run.get('stopped') or 'given up'} {sent}"


def _slo(found: dict[str, Any]) -> Slo:
    return Slo("both", found["slo"]["ttft_ms"], found["slo"]["tpot_ms"])


def _draw(found: dict[str, Any], path: Path) -> None:
    """Latencies and attainment of every run over time; the controller's splits."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    slo = _slo(found)
    figure, rows = pyplot.subplots(4, 1, sharex=True, figsize=(9, 11))
    for run in found["runs"]:
        if run["attainment"] is None:
            continue
        bins = _bins(run["records"])
        at = [BIN_S * (number + 0.5) for number in bins]
        values = [
            [
                percentile([one.ttft_ms for one in group], 0.9)
                for group in bins.values()
            ],
            [
                percentile([one.tpot_ms for one in group], 0.9)
                for group in bins.values()
            ],
            [100 * attainment(group, slo) for group in bins.values()],
        ]
        for row, series in zip(rows, values, strict=False):
            row.plot(at, series, label=run["name"], linewidth=1.2)
    for row, target, name in (
        (rows[0], slo.ttft_ms, "TTFT P90, ms"),
        (rows[1], slo.tpot_ms, "TPOT P90, ms"),
        (rows[2], None, "inside both SLOs, %"),
    ):
        row.set_ylabel(name)
        if target is not None:
            row.axhline(target, color="black", linestyle=":", linewidth=1)
            row.set_yscale("log")
    rows[0].legend(ncols=3, fontsize="small")
    _draw_splits(found, rows[3])
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def _draw_splits(found: dict[str, Any], row: Any) -> None:
    run = next((run for run in found["runs"] if run["name"] == "controller"), None)
    samples = run["samples"] if run else []
    for role, colour in (("prefill", "tab:blue"), ("decode", "tab:orange")):
        key = f"{role}_percentage"
        at = [one["at_s"] for one in samples]
        asked = [one["asked"][key] for one in samples]
        row.step(at, asked, where="post", color=colour, label=f"{role} asked")
        had = [(one["at_s"], one["had"][key]) for one in samples if one["had"]]
        if had:
            row.plot(*zip(*had, strict=True), ".", color=colour, label=f"{role} had")
    row.set_ylabel("split of the controller, % of SMs")
    row.set_xlabel("arrival, s")
    row.legend(ncols=2, fontsize="small")


def _bins(records: list[Record]) -> dict[int, list[Record]]:
    bins: dict[int, list[Record]] = {}
    for one in records:
        bins.setdefault(int(one.arrival_s / BIN_S), []).append(one)
    return bins
