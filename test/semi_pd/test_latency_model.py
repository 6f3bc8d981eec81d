# SPDX-License-Identifier: Apache-2.0
"""Eq. 4: recovered from its own data, undefined where the queue is, robust."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
from sglang.semi_pd.control.latency_model import (
    LatencyModel,
    LatencyModelFitter,
    queue_aware_ttft_ms,
)
from sglang.semi_pd.slo_types import LatencySummary, MetricsSnapshot
from sglang.semi_pd.sm_allocation import UNPARTITIONED, SMAllocation

TRUTH = LatencyModel(
    ttft_scale_ms=55.0,
    ttft_floor_ms=12.0,
    prefill_s_per_token=4e-5,
    tpot_scale_ms=5.0,
    tpot_floor_ms=4.0,
)
COEFFICIENTS = (
    "ttft_scale_ms",
    "ttft_floor_ms",
    "prefill_s_per_token",
    "tpot_scale_ms",
    "tpot_floor_ms",
)


@functools.cache
def fitter_of(
    windows: int, *, noise: float = 0.0, outliers: int = 0, seed: int = 0
) -> LatencyModelFitter:
    """Feed windows of the true model at random splits and rates, refitting each."""
    random = np.random.default_rng(seed)
    fitter = LatencyModelFitter()
    for window in range(windows):
        x, tokens_per_s = random.uniform(0.3, 0.9), random.uniform(1000, 6000)
        spoiled = 10.0 if window % 8 == 3 and window < 8 * outliers else 1.0
        factor = spoiled * (1 + noise * random.normal())
        fitter.add_ttft(x, tokens_per_s, TRUTH.ttft_ms(x, tokens_per_s) * factor)
        fitter.add_tpot(1 - x, TRUTH.tpot_ms(1 - x) * factor)
        fitter.refit()
    return fitter


@pytest.mark.parametrize("name", COEFFICIENTS)
@pytest.mark.parametrize("outliers", [0, 4])
def test_parameters_are_recovered_within_5_percent(name: str, outliers: int) -> None:
    model = fitter_of(48, outliers=outliers).model
    assert getattr(model, name) == pytest.approx(getattr(TRUTH, name), rel=0.05)


def test_lambda_is_recovered_at_one_rate_as_in_the_paper() -> None:
    fitter = LatencyModelFitter()
    for share in np.linspace(0.3, 0.9, 12):
        fitter.add_ttft(share, 5000.0, TRUTH.ttft_ms(share, 5000.0))
    fitted = fitter.refit().prefill_load(5000.0)
    assert fitted == pytest.approx(TRUTH.prefill_load(5000.0), rel=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_noise_leaves_predictions_usable(seed: int) -> None:
    model = fitter_of(64, noise=0.1, seed=seed).model
    for share in (0.4, 0.6, 0.8):
        predicted_ms = model.ttft_ms(share, 4000.0)
        assert predicted_ms == pytest.approx(TRUTH.ttft_ms(share, 4000.0), rel=0.15)
        assert model.tpot_ms(share) == pytest.approx(TRUTH.tpot_ms(share), rel=0.1)
    assert model.is_trusted
    assert 0.02 < model.tpot_error < 0.2


def test_no_latency_where_the_queue_never_settles() -> None:
    at_capacity = 0.5 / TRUTH.prefill_s_per_token * (1 + 1e-12)
    assert TRUTH.ttft_ms(0.5, at_capacity) == math.inf
    assert TRUTH.ttft_ms(0.5, 2 * at_capacity) == math.inf
    assert math.isfinite(TRUTH.ttft_ms(0.5, 0.99 * at_capacity))


def test_it_predicts_before_any_data_and_one_window_sets_the_scale() -> None:
    fitter = LatencyModelFitter()
    assert fitter.model == LatencyModel()
    assert not fitter.model.is_trusted
    fitter.add_ttft(0.5, 5000.0, 400.0)
    fitter.add_tpot(0.5, 40.0)
    model = fitter.refit()
    assert model.ttft_ms(0.5, 5000.0) == pytest.approx(400, rel=0.02)
    assert model.tpot_ms(0.5) == pytest.approx(40, rel=0.02)
    assert model.tpot_ms(0.25) > model.tpot_ms(0.5)


def window(ttft_ms: float, tpot_ms: float, first_token_rate: float) -> MetricsSnapshot:
    return MetricsSnapshot(
        taken_at_s=0.0,
        window_s=30.0,
        ttft=LatencySummary(99, *[ttft_ms] * 4),
        tpot=LatencySummary(99, *[tpot_ms] * 4),
        arrival_rate=10.0,
        first_token_rate=first_token_rate,
        mean_input_length=100.0,
    )


def test_windows_that_eq_4_does_not_describe_are_left_out() -> None:
    fitter = LatencyModelFitter()
    split = SMAllocation(50, 50)
    prior = fitter.model
    good = window(100.0, 10.0, first_token_rate=10.0)
    assert fitter.observe(good, UNPARTITIONED, percentile=95) == prior
    bad = window(math.nan, math.nan, first_token_rate=10.0)
    assert fitter.observe(bad, split, percentile=95) == prior
    overloaded = window(5000.0, 10.0, first_token_rate=5.0)
    model = fitter.observe(overloaded, split, percentile=95)
    assert model.ttft_scale_ms == prior.ttft_scale_ms
    assert model.tpot_ms(0.5) == pytest.approx(10.0, rel=0.02)


def test_idle_prefill_fits_without_a_rate() -> None:
    fitter = LatencyModelFitter()
    for share in (0.3, 0.5, 0.8):
        fitter.add_ttft(share, 0.0, TRUTH.ttft_ms(share, 0.0))
    assert fitter.refit().ttft_ms(0.6, 0.0) == pytest.approx(
        TRUTH.ttft_ms(0.6, 0.0), rel=0.05
    )


def test_a_backlog_raises_the_expected_ttft() -> None:
    def expected_ms(queue_length: int) -> float:
        return queue_aware_ttft_ms(
            TRUTH,
            prefill_share=0.5,
            queue_length=queue_length,
            mean_prompt_tokens=1000.0,
        )

    assert expected_ms(0) == pytest.approx(80 + 12)
    assert expected_ms(9) == pytest.approx(800 + 12)
