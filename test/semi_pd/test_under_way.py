# SPDX-License-Identifier: Apache-2.0
"""What runs and what arrives: since when it counts, and what is chance."""

from __future__ import annotations

import numpy as np
import pytest
from sglang.semi_pd.control.arrival_turn import turned_at_s
from sglang.semi_pd.control.work_under_way import DecodePace
from sglang.semi_pd.metrics_collector import SemiPDMetricsCollector

DECODE_HEAVY, PREFILL_HEAVY = (24.0, 600), (17.4, 1500)
Arrivals = list[tuple[float, float]]


def arrivals(seed: int, *parts: tuple[tuple[float, int], float, float]) -> Arrivals:
    """Poisson arrivals of (rate, mean prompt) from one moment to another."""
    source = np.random.default_rng(seed)
    found: Arrivals = []
    for (rate, length), begins_s, ends_s in parts:
        at_s = begins_s + source.exponential(1 / rate)
        while at_s < ends_s:
            found.append((at_s, float(source.integers(length // 2, 3 * length // 2))))
            at_s += source.exponential(1 / rate)
    return found


@pytest.mark.parametrize("load", [DECODE_HEAVY, PREFILL_HEAVY, (400.0, 50)])
def test_the_same_load_has_no_turn(load: tuple[float, int]) -> None:
    turns = 0
    for seed in range(200):
        found = arrivals(seed, (load, 0.0, 5.0))
        turns += turned_at_s(found, 0.0, 5.0) > 0
    assert turns <= 10


def test_two_seconds_show_a_turn_to_long_prompts() -> None:
    """They are told apart from what came before: a mean over both is neither."""
    seen = []
    for seed in range(40):
        found = arrivals(seed, (DECODE_HEAVY, 0.0, 3.0), (PREFILL_HEAVY, 3.0, 5.0))
        turned_s = turned_at_s(found, 0.0, 5.0)
        if turned_s:
            tokens = sum(length for when, length in found if when >= turned_s)
            seen.append(tokens / (5.0 - turned_s))
    assert len(seen) >= 25
    assert np.mean(seen) == pytest.approx(17.4 * 1500, rel=0.15)


def test_one_long_prompt_is_no_turn() -> None:
    found = arrivals(0, (DECODE_HEAVY, 0.0, 5.0))
    assert turned_at_s([*found, (4.95, 100_000.0)], 0.0, 5.0) == 0.0


def test_too_little_shows_nothing() -> None:
    assert turned_at_s([], 0.0, 5.0) == 0.0
    assert turned_at_s([(4.9, 1e4)] * 15, 0.0, 5.0) == 0.0
    assert turned_at_s([(0.0, 0.0)] * 20 + [(4.9, 0.0)] * 20, 0.0, 5.0) == 0.0
    assert turned_at_s([(5.0, 10.0)] * 40, 5.0, 5.0) == 5.0


def test_the_collector_knows_a_turn_of_its_arrivals() -> None:
    collector = SemiPDMetricsCollector(5.0)
    found = arrivals(0, (DECODE_HEAVY, 10.0, 13.0), ((24.0, 2000), 13.0, 15.0))
    for number, (when, length) in enumerate(found):
        collector.record_request_arrival(str(number), int(length), now=when)
    turned_s = collector.arrivals_turned_at_s(0.0, now=15.0)
    assert 12.0 <= turned_s <= 14.0
    turned = collector.snapshot(now=15.0, since_s=turned_s)
    whole = collector.snapshot(now=15.0)
    assert turned.mean_input_length > 1.3 * whole.mean_input_length


def test_a_pace_needs_some_time() -> None:
    """A second token that came late is no pace; the whole stretch counts later."""
    tokens = {"begun": 2, "runs": 101, "stalls": 1}
    pace = DecodePace(tokens.get)
    running = [("begun", 0.95), ("runs", 0.0), ("stalls", 0.7)]
    assert sorted(pace.look(running, 1.0)) == pytest.approx([10.0, 300.0])
    tokens |= {"begun": 106, "runs": 201}
    assert sorted(pace.look(running[:2], 2.0)) == pytest.approx([10.0, 10.0])
