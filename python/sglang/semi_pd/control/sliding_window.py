# SPDX-License-Identifier: Apache-2.0
"""The newest samples of one figure, and their percentiles."""

from __future__ import annotations

from collections import deque

import numpy as np
from sglang.semi_pd.slo_types import PERCENTILES, LatencySummary


class SlidingWindow:
    """The newest (time, value) samples, in time order, at most ``cap`` of them.

    Samples older than ``span_s`` leave as new ones come, so that adding one costs O(1)
    amortised.
    """

    def __init__(self, span_s: float, cap: int) -> None:
        self._span_s = span_s
        self._samples: deque[tuple[float, float]] = deque(maxlen=cap)

    def add(self, now: float, value: float) -> None:
        """Append a sample and drop those that are too old."""
        samples = self._samples
        samples.append((now, value))
        oldest_s = now - self._span_s
        while samples[0][0] < oldest_s:
            samples.popleft()

    def samples(self) -> list[tuple[float, float]]:
        """Return a copy, oldest first: quick, to be made under the lock."""
        return list(self._samples)


def summarise(latencies_ms: np.ndarray) -> LatencySummary:
    """Return count and percentiles of latencies, milliseconds."""
    if not len(latencies_ms):
        return LatencySummary()
    percentiles = np.percentile(latencies_ms, PERCENTILES)
    return LatencySummary(len(latencies_ms), *map(float, percentiles))
