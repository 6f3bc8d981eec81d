# SPDX-License-Identifier: Apache-2.0
"""The paper's latency models, Eq. 1 to 4, and a robust fit of them while serving.

With x and y the normalised shares of prefill and decode (0 to 1):

    TTFT = a1 / (x - lambda) + b1        TPOT = a2 / y + b2            (Eq. 4)

A worker's rate grows with its share (Eq. 1), the prefill queue is M/M/1 (Eq. 2), and
lambda is the part of the GPU that the offered prompts keep busy (Eq. 3): arriving
prompt tokens per second times the seconds that one token costs the whole GPU. The
paper learns lambda for a fixed request rate; learning the cost of a token instead
lets samples taken at different rates and prompt lengths inform one fit.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from sglang.semi_pd.slo_types import MetricsSnapshot
from sglang.semi_pd.sm_allocation import SMAllocation

# A model is believed once it was fitted to this many different splits and predicts
# the next window within this relative error.
TRUSTED_SPLITS = 3
TRUSTED_ERROR = 0.3


@dataclass(frozen=True, slots=True)
class LatencyModel:
    """Coefficients of Eq. 4 and how well they did lately.

    The defaults are the prior: an 8B model on one H200, 1000-token prompts. Only its
    shape matters, since the first windows rescale it.

    Args:
        ttft_scale_ms: a1, milliseconds.
        ttft_floor_ms: b1, milliseconds.
        prefill_s_per_token: cost of a prompt token on the whole GPU, seconds.
        tpot_scale_ms: a2, milliseconds.
        tpot_floor_ms: b2, milliseconds.
        ttft_error: median relative error of recent predictions of the next window.
        tpot_error: the same for TPOT.
        splits_seen: different splits among the samples fitted to.
    """

    ttft_scale_ms: float = 40.0
    ttft_floor_ms: float = 20.0
    prefill_s_per_token: float = 2.5e-5
    tpot_scale_ms: float = 6.0
    tpot_floor_ms: float = 3.0
    ttft_error: float = math.nan
    tpot_error: float = math.nan
    splits_seen: int = 0

    @property
    def is_trusted(self) -> bool:
        """Whether the fit has earned a say against what is observed."""
        has_range = self.splits_seen >= TRUSTED_SPLITS
        return has_range and max(self.ttft_error, self.tpot_error) <= TRUSTED_ERROR

    def prefill_load(self, prompt_tokens_per_s: float) -> float:
        """Return lambda of Eq. 3: the part of the GPU that prefill needs, 0 and up."""
        return prompt_tokens_per_s * self.prefill_s_per_token

    def ttft_ms(self, prefill_share: float, prompt_tokens_per_s: float) -> float:
        """Return TTFT by Eq. 4, milliseconds; infinite where the queue never settles.

        The queue of Eq. 2 has no steady state when the arrival rate is at or above the
        service rate, that is when x <= lambda.
        """
        spare = prefill_share - self.prefill_load(prompt_tokens_per_s)
        if spare <= 0:
            return math.inf
        return self.ttft_scale_ms / spare + self.ttft_floor_ms

    def tpot_ms(self, decode_share: float) -> float:
        """Return TPOT by Eq. 4, milliseconds."""
        return self.tpot_scale_ms / decode_share + self.tpot_floor_ms


def queue_aware_ttft_ms(
    model: LatencyModel,
    *,
    prefill_share: float,
    queue_length: int,
    mean_prompt_tokens: float,
) -> float:
    """Return the TTFT that a prompt arriving now would see, milliseconds.

    Eq. 4 is a steady state and knows nothing of a backlog. Here the prompts already
    queued are served first, at the rate of Eq. 1, then the prompt itself.
    """
    tokens = (queue_length + 1) * mean_prompt_tokens
    service_ms = 1e3 * tokens * model.prefill_s_per_token / prefill_share
    return service_ms + model.ttft_floor_ms


class _TTFTSample(NamedTuple):
    prefill_share: float
    prompt_tokens_per_s: float
    ttft_ms: float


class _TPOTSample(NamedTuple):
    decode_share: float
    tpot_ms: float


class LatencyModelFitter:
    """Keeps the newest windows and refits the model to them.

    It lives with the controller, which calls ``observe`` once per window. Windows
    recorded without a division say nothing about shares and are left out, as are TTFTs
    of an overloaded prefill worker, which Eq. 2 does not describe.

    Args:
        prior: the model before any data.
        max_samples: windows remembered.
    """

    def __init__(
        self, prior: LatencyModel | None = None, *, max_samples: int = 128
    ) -> None:
        self._prior = prior or LatencyModel()
        self.model = self._prior
        self._ttft: deque[_TTFTSample] = deque(maxlen=max_samples)
        self._tpot: deque[_TPOTSample] = deque(maxlen=max_samples)
        self._ttft_errors: deque[float] = deque(maxlen=16)
        self._tpot_errors: deque[float] = deque(maxlen=16)

    def observe(
        self, snapshot: MetricsSnapshot, allocation: SMAllocation, *, percentile: int
    ) -> LatencyModel:
        """Add a window recorded under ``allocation``; return the refitted model."""
        if allocation.is_unpartitioned:
            return self.model
        ttft_ms = snapshot.ttft.at(percentile)
        if snapshot.prefill_keeps_up and _is_latency(ttft_ms):
            tokens_per_s = snapshot.prompt_tokens_per_s
            self.add_ttft(allocation.prefill_share, tokens_per_s, ttft_ms)
        tpot_ms = snapshot.tpot.at(percentile)
        if _is_latency(tpot_ms):
            self.add_tpot(allocation.decode_share, tpot_ms)
        return self.refit()

    def add_ttft(
        self, prefill_share: float, prompt_tokens_per_s: float, ttft_ms: float
    ) -> None:
        """Add one TTFT sample (x, offered tokens per second, milliseconds)."""
        predicted_ms = self.model.ttft_ms(prefill_share, prompt_tokens_per_s)
        self._ttft_errors.append(min(1.0, abs(predicted_ms / ttft_ms - 1)))
        self._ttft.append(_TTFTSample(prefill_share, prompt_tokens_per_s, ttft_ms))

    def add_tpot(self, decode_share: float, tpot_ms: float) -> None:
        """Add one TPOT sample (y, milliseconds)."""
        predicted_ms = self.model.tpot_ms(decode_share)
        self._tpot_errors.append(min(1.0, abs(predicted_ms / tpot_ms - 1)))
        self._tpot.append(_TPOTSample(decode_share, tpot_ms))

    def refit(self) -> LatencyModel:
        """Fit Eq. 4 to the samples kept and return the model."""
        model = self.model
        if self._ttft:
            a1, b1, cost = _fit_ttft(np.array(self._ttft), self._prior)
            model = replace(
                model, ttft_scale_ms=a1, ttft_floor_ms=b1, prefill_s_per_token=cost
            )
        if self._tpot:
            share, latency = np.array(self._tpot).T
            prior = (self._prior.tpot_scale_ms, self._prior.tpot_floor_ms)
            fit = _robust_fit(1.0 / share[None, :], latency, prior)
            model = replace(
                model, tpot_scale_ms=float(fit.a[0]), tpot_floor_ms=float(fit.b[0])
            )
        self.model = replace(
            model,
            ttft_error=_median(self._ttft_errors),
            tpot_error=_median(self._tpot_errors),
            splits_seen=len({round(s.decode_share, 2) for s in self._tpot}),
        )
        return self.model


class _Fit(NamedTuple):
    """latency = a * u + b, one line per candidate regressor, with its robust loss."""

    a: np.ndarray
    b: np.ndarray
    loss: np.ndarray


_HUBER_SCALES = 1.345  # 95 % efficient on Gaussian noise
_PRIOR_WEIGHT = 1e-3  # decides only what the samples leave open
_HALF_LIFE = 32.0  # samples after which an old one counts half
_ITERATIONS = 8
_COST_CANDIDATES = 16
_COST_ROUNDS = 4


def _robust_fit(
    regressors: np.ndarray, latency_ms: np.ndarray, prior: tuple[float, float]
) -> _Fit:
    """Fit a and b for each row of ``regressors`` by reweighted least squares.

    Residuals are relative to the observed latency, since latency spans decades and its
    noise is a fraction of it. Huber weights keep outliers from steering; a faint pull
    towards the prior's shape, rescaled to the data, settles what a single split cannot.
    """
    age = np.arange(len(latency_ms))[::-1]
    recency = 0.5 ** (age / _HALF_LIFE)
    slope, ones = regressors / latency_ms, 1.0 / latency_ms
    typical_ms = np.median(prior[0] * regressors + prior[1], axis=1)
    scale = np.median(latency_ms) / typical_ms
    prior_a, prior_b = scale * prior[0], scale * max(prior[1], 1e-9)
    weights = np.broadcast_to(recency, slope.shape)
    for _ in range(_ITERATIONS):
        a, b = _ridge_line(slope, ones, weights, prior_a, prior_b)
        residual = a[:, None] * slope + b[:, None] * ones - 1.0
        spread = 1.4826 * np.median(np.abs(residual), axis=1, keepdims=True) + 1e-9
        excess = np.abs(residual) / (_HUBER_SCALES * spread)
        weights = recency / np.maximum(1.0, excess)
    loss = (recency * np.abs(residual)).sum(axis=1) / recency.sum()
    return _Fit(a, b, loss)


def _ridge_line(
    slope: np.ndarray,
    ones: np.ndarray,
    weights: np.ndarray,
    prior_a: np.ndarray,
    prior_b: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Solve each row's weighted normal equations for a > 0 and b >= 0."""
    pull_a, pull_b = _PRIOR_WEIGHT / prior_a**2, _PRIOR_WEIGHT / prior_b**2
    saa = (weights * slope * slope).sum(axis=1) + pull_a
    sab = (weights * slope * ones).sum(axis=1)
    sbb = (weights * ones * ones).sum(axis=1) + pull_b
    sa = (weights * slope).sum(axis=1) + pull_a * prior_a
    sb = (weights * ones).sum(axis=1) + pull_b * prior_b
    determinant = saa * sbb - sab * sab
    a = (sa * sbb - sb * sab) / determinant
    b = (sb * saa - sa * sab) / determinant
    a = np.where(b < 0, sa / saa, a)
    b = np.maximum(b, 0.0)
    b = np.where(a <= 0, sb / sbb, b)
    return np.maximum(a, 1e-6 * prior_a), b


def _fit_ttft(samples: np.ndarray, prior: LatencyModel) -> tuple[float, float, float]:
    """Return a1, b1 and the cost of a prompt token.

    Given the cost, Eq. 4 is a line in 1 / (x - lambda); so the cost is searched on a
    grid that closes in around the best line. It cannot exceed what would overload a
    sample, since samples come from queues that settled.
    """
    share, tokens_per_s, latency_ms = samples.T
    is_loaded = tokens_per_s > 0
    if not is_loaded.any():
        line = _robust_fit(
            1.0 / share[None, :],
            latency_ms,
            (prior.ttft_scale_ms, prior.ttft_floor_ms),
        )
        return float(line.a[0]), float(line.b[0]), prior.prefill_s_per_token
    highest = 0.99 * float((share[is_loaded] / tokens_per_s[is_loaded]).min())
    low, high = 0.0, highest
    for _ in range(_COST_ROUNDS):
        costs = np.linspace(low, high, _COST_CANDIDATES)
        spare = share - costs[:, None] * tokens_per_s
        fit = _robust_fit(
            1.0 / spare, latency_ms, (prior.ttft_scale_ms, prior.ttft_floor_ms)
        )
        doubt = np.abs(costs - prior.prefill_s_per_token) / highest
        best = int(np.argmin(fit.loss + _PRIOR_WEIGHT * doubt / len(latency_ms)))
        pitch = costs[1] - costs[0]
        low, high = max(0.0, costs[best] - pitch), min(highest, costs[best] + pitch)
    return float(fit.a[best]), float(fit.b[best]), float(costs[best])


def _is_latency(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _median(errors: deque[float]) -> float:
    return float(np.median(errors)) if errors else math.nan
