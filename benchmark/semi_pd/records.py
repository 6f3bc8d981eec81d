# SPDX-License-Identifier: Apache-2.0
"""What was measured of each request, and what follows from it for a run."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

GOOD_ENOUGH = 0.9
"""Share of requests that must be inside their SLOs for a rate to count as goodput."""


@dataclass(frozen=True, slots=True)
class Record:
    """One request as its client saw it; one line of JSON.

    Attributes:
        ttft_ms: from sending to the first token.
        tpot_ms: mean time of the tokens after the first.
        worst_gap_ms: longest time between two pieces of the stream.
        success: whether all tokens came.
    """

    arrival_s: float
    input_len: int
    output_len: int
    ttft_ms: float
    tpot_ms: float
    worst_gap_ms: float
    success: bool = True


@dataclass(frozen=True, slots=True)
class Slo:
    """What a request must keep to: its first token, and its tempo or its worst gap."""

    name: str
    ttft_ms: float
    tpot_ms: float = math.inf
    gap_ms: float = math.inf

    def holds(self, record: Record) -> bool:
        """Whether a request is inside."""
        return (
            record.success
            and record.ttft_ms <= self.ttft_ms
            and record.tpot_ms <= self.tpot_ms
            and record.worst_gap_ms <= self.gap_ms
        )


def attainment(records: Sequence[Record], slo: Slo) -> float:
    """Share of the requests inside their SLOs; 0 of none."""
    return sum(map(slo.holds, records)) / len(records) if records else 0.0


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that ``share`` of the values do not exceed; NaN of none."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]


def summary(records: Sequence[Record], slos: Sequence[Slo]) -> dict[str, float]:
    """Percentiles of what succeeded, in milliseconds, and the share inside each SLO."""
    done = [record for record in records if record.success]
    found: dict[str, float] = {
        "requests": len(records),
        "failed": len(records) - len(done),
    }
    for name in ("ttft_ms", "tpot_ms", "worst_gap_ms"):
        values = [getattr(record, name) for record in done]
        for percent in (50, 90, 99):
            found[f"{name}_p{percent}"] = percentile(values, percent / 100)
    for slo in slos:
        found[f"attainment_{slo.name}"] = attainment(records, slo)
    return found


def goodput(shares: dict[float, float]) -> float:
    """Highest rate below which no rate was measured too bad; 0 if none was good.

    Args:
        shares: the share of requests inside the SLOs, by request rate.
    """
    best = 0.0
    for rate in sorted(shares):
        if shares[rate] < GOOD_ENOUGH:
            break
        best = rate
    return best


def write(path: Path, records: Sequence[Record]) -> None:
    """One line of JSON for each request."""
    lines = (json.dumps(asdict(record)) + "\n" for record in records)
    path.write_text("".join(lines), encoding="utf-8")


def read(path: Path) -> list[Record]:
    """What ``write`` wrote."""
    names = {field.name for field in fields(Record)}
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    return [Record(**{k: v for k, v in one.items() if k in names}) for one in found]
