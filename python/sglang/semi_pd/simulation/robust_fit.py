# SPDX-License-Identifier: Apache-2.0
"""Least squares over logarithms of coefficients, for a model that is simulated.

Damped Gauss-Newton steps (Levenberg-Marquardt): coefficients that can stand in for each
other, as a fixed time and a time per token can, are moved together. The same misses
always give the same fit.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_DIFFERENCES = (0.04, 0.15, 0.01)
"""Of a coefficient, for a slope: a simulated queue is a staircase seen closely, so
another distance is tried where one shows no way down."""
_FAR = 2.0
"""Misses count in full up to so many times the usual one, beyond with their root."""
_ROUNDS = 25
_DAMPINGS = (1e-3, 1e-1, 1.0, 10.0, 100.0)
_LONGEST_STEP = 0.7

Misses = Callable[[np.ndarray], np.ndarray]


def fit(misses: Misses, starts: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """Return the point with the least misses that is found from any of the starts.

    Args:
        misses: what is to become small, at a point.
        starts: points, logarithms of coefficients.
        ties: how firmly each coefficient is held where it began: moved by a factor of
            e it costs as much as a miss of this size. What a run does not show stays.
    """
    found = [_descend(misses, start, ties) for start in starts]
    return min(found, key=lambda one: one[0])[1]


def _descend(
    misses: Misses, start: np.ndarray, ties: np.ndarray
) -> tuple[float, np.ndarray]:
    point, now = start, misses(start)
    tried = 0
    for _ in range(_ROUNDS):
        weights = _weights(now)
        before = _cost(now, weights, ties * (point - start))
        slopes = _slopes(misses, point, _DIFFERENCES[tried]) * weights[:, None]
        curvature = slopes.T @ slopes + np.diag(ties**2)
        downhill = -slopes.T @ (weights * now) - ties**2 * (point - start)
        trials = []
        for damping in _DAMPINGS:
            damped = curvature + damping * np.diag(np.diag(curvature))
            step = np.linalg.solve(damped, downhill)
            step *= min(1.0, _LONGEST_STEP / max(np.abs(step).max(), 1e-12))
            missed = misses(point + step)
            cost = _cost(missed, weights, ties * (point + step - start))
            trials.append((cost, point + step, missed))
        cost, next_point, missed = min(trials, key=lambda trial: trial[0])
        if cost < before * (1 - 1e-3):
            point, now, tried = next_point, missed, 0
        else:
            tried += 1
            if tried == len(_DIFFERENCES):
                break
    return _cost(now, _weights(now), ties * (point - start)), point


def _slopes(misses: Misses, point: np.ndarray, difference: float) -> np.ndarray:
    columns = []
    for place in range(len(point)):
        aside = np.zeros(len(point))
        aside[place] = difference
        columns.append(misses(point + aside) - misses(point - aside))
    return np.column_stack(columns) / (2 * difference)


def _weights(missed: np.ndarray) -> np.ndarray:
    """Less for what is far off: a stall that no model would know."""
    usual = max(1.48 * float(np.median(np.abs(missed))), 1e-9)
    return np.sqrt(np.minimum(1.0, _FAR * usual / np.maximum(np.abs(missed), 1e-12)))


def _cost(missed: np.ndarray, weights: np.ndarray, held: np.ndarray) -> float:
    return float(((weights * missed) ** 2).sum() + (held**2).sum())
