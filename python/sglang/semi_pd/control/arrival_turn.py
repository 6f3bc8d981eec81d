# SPDX-License-Identifier: Apache-2.0
"""Since when prompts have arrived as they do now.

A window's mean of arrivals is a load that never was, while a turn of the load is inside
it. Where the newest part differs from the rest by more than chance, it alone counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_PARTS = (0.2, 0.3, 0.4, 0.6)
"""Newest parts of the window that are held against the rest of it."""
_DEVIATIONS = 3.0
"""So many standard deviations are more than chance."""
_FEWEST = 10
"""Prompts on either side, with fewer nothing is proved."""


def turned_at_s(
    arrivals: Sequence[tuple[float, float]], start_s: float, now: float
) -> float:
    """Return when the newest turn was, or ``start_s`` where there was none.

    Args:
        arrivals: moment, seconds, and prompt tokens of each, oldest first.
    """
    window_s = now - start_s
    seen = np.array([one for one in arrivals if one[0] >= start_s]).reshape(-1, 2)
    best = (_DEVIATIONS, start_s)
    for part in _PARTS if len(seen) >= 2 * _FEWEST and window_s > 0 else ():
        cut_s = now - part * window_s
        first = int(np.searchsorted(seen[:, 0], cut_s))
        old, new = seen[:first, 1], seen[first:, 1]
        if min(len(old), len(new)) >= _FEWEST:
            best = max(best, (_deviation(old, new, window_s, part), cut_s))
    return best[1]


def _deviation(old: np.ndarray, new: np.ndarray, window_s: float, part: float) -> float:
    """By how many standard deviations tokens per second differ (compound Poisson).

    One long prompt is no turn, so the longest of the new ones may not decide it.
    """
    old_s, new_s = window_s * (1 - part), window_s * part
    before = float(old.sum()) / old_s
    rise = float(new.sum() - new.max()) / new_s - before
    fall = before - float(new.sum()) / new_s
    variance = float((old**2).sum()) / old_s * (1 / old_s + 1 / new_s)
    return max(rise, fall) / math.sqrt(variance) if variance > 0 else 0.0
