# SPDX-License-Identifier: Apache-2.0
"""Draws simulation reports; the only file of the command that needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from sglang.semi_pd.simulation.simulation import SimulationReport

matplotlib.use("Agg")

from matplotlib import pyplot  # noqa: E402 - the backend is chosen first


def plot_reports(reports: Sequence[SimulationReport], path: Path) -> None:
    """Write one panel each for TTFT, TPOT, worst gap and SLO attainment."""
    names = [report.name for report in reports]
    figure, panels = pyplot.subplots(2, 2, figsize=(10, 7), constrained_layout=True)
    titles = ("TTFT, ms", "TPOT, ms", "worst gap between two tokens, ms")
    fields = ("ttft", "tpot", "worst_gap")
    for panel, title, field in zip(panels.flat, titles, fields, strict=False):
        summaries = [getattr(report, field) for report in reports]
        for percentile in (50, 90, 99):
            values = [summary.at(percentile) for summary in summaries]
            panel.plot(names, values, marker="o", label=f"P{percentile}")
        panel.set_title(title)
        panel.set_yscale("log")
        panel.legend()
    attainment = panels.flat[3]
    attainment.bar(names, [100 * report.slo_attainment for report in reports])
    attainment.set_title("requests that meet both SLOs, %")
    attainment.set_ylim(0, 100)
    for panel in panels.flat:
        panel.set_xlabel("split: prefill/decode, % of the SMs")
        panel.tick_params(axis="x", rotation=30)
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
