# SPDX-License-Identifier: Apache-2.0
"""A run as clients measured it: what the simulator is fitted to and judged by."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sglang.semi_pd.errors import ConfigError
from sglang.semi_pd.simulation.trace import Trace

_FEWEST = 20


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """Requests in order of arrival, with what each client saw.

    Args:
        trace: arrivals, prompt and output tokens.
        ttft_ms: time to first token of each request, milliseconds.
        tpot_ms: time per output token, milliseconds; NaN for one token.
    """

    trace: Trace
    ttft_ms: np.ndarray
    tpot_ms: np.ndarray

    @classmethod
    def load(cls, path: Path) -> MeasuredRun:
        """Read JSON lines as ``benchmark/semi_pd/record_run.py`` writes them.

        Raises:
            ConfigError: a line is no record, or there are too few.
        """
        rows = []
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            if line.strip():
                rows.append(_row(path, number, line))
        if len(rows) < _FEWEST:
            raise ConfigError(
                f"{path} holds {len(rows)} requests",
                why=f"percentiles need at least {_FEWEST}",
                mend="record a longer run",
            )
        columns = np.array(sorted(rows), dtype=float).T
        trace = Trace(columns[0], columns[1].astype(int), columns[2].astype(int))
        return cls(trace, columns[3], columns[4])


def _row(path: Path, number: int, line: str) -> tuple[float, ...]:
    try:
        row: dict[str, Any] = json.loads(line)
        tpot_ms = row["tpot_ms"]
        figures = (
            float(row["arrival_s"]),
            int(row["input_len"]),
            int(row["output_len"]),
            float(row["ttft_ms"]),
            float("nan") if tpot_ms is None else float(tpot_ms),
        )
        if min(figures[:2]) < 0 or figures[2] < 1 or not figures[3] > 0:
            raise ValueError("a time or a length is out of range")
        return figures
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}, line {number}, is not a record of a request",
            why=f"{type(error).__name__}: {error}",
            mend="record runs with benchmark/semi_pd/record_run.py",
        ) from error
