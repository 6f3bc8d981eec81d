# SPDX-License-Identifier: Apache-2.0
"""How long handovers take, part by part, in the worker that receives them.

A handover begins when prefill has the result of the prompt's last chunk, and ends when
decode has built the request:

    conclude    prefill's work until the message is sent
    wait        until decode takes it from its socket; the pipe is in it
    adopt       until the request is built
    total       the three together
    join        then, until the request joins decode's batch

What a decode worker passes on to its successor has been running: that is not counted.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sglang.semi_pd.workers.messages import Handover

REMEMBERED = 10_000
PARTS = ("conclude", "wait", "adopt", "total", "join")


class HandoverTimes:
    """The newest handovers' times, in milliseconds."""

    def __init__(self) -> None:
        self._done: deque[tuple[float, ...]] = deque(maxlen=REMEMBERED)

    def joined(self, handover: Handover, adopted_at: float) -> None:
        """The request joins the batch now.

        Args:
            adopted_at: ``time.monotonic()`` when it had been built.
        """
        if handover.is_passed_on:
            return
        # perf_counter and monotonic are one clock on Linux, for all processes.
        stamps = (
            handover.times.prefill_finished_time,
            handover.handed_over_at,
            handover.received_at,
            adopted_at,
        )
        parts = [1e3 * (b - a) for a, b in zip(stamps, stamps[1:], strict=False)]
        waited = 1e3 * (time.monotonic() - adopted_at)
        self._done.append((*parts, sum(parts), waited))

    def summary(self) -> dict[str, tuple[float, float]]:
        """P50 and P99 of each part, in milliseconds; empty without a handover."""
        if not self._done:
            return {}
        percentiles = np.percentile(np.array(self._done), (50, 99), axis=0)
        return {
            part: (float(p50), float(p99))
            for part, p50, p99 in zip(PARTS, *percentiles, strict=True)
        }

    def __str__(self) -> str:
        return ", ".join(
            f"{part} {p50:.2f} / {p99:.2f}"
            for part, (p50, p99) in self.summary().items()
        )
