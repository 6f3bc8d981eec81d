# SPDX-License-Identifier: Apache-2.0
"""Shares as runs of units of SMs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang.semi_pd.partition.sm_ranges import SMRange, SMUnits
from sglang.semi_pd.sm_allocation import UNPARTITIONED, SMAllocation
from sglang.semi_pd.utils import InstanceRole

PREFILL, DECODE = InstanceRole.PREFILL, InstanceRole.DECODE
H200 = SMUnits((8,) * 14 + (20,))

units = st.lists(st.integers(2, 16), min_size=2, max_size=20).map(
    lambda sizes: SMUnits(tuple(sizes))
)
percentages = st.integers(1, 100)


def test_prefill_counts_from_the_first_unit_and_decode_to_the_last():
    split = SMAllocation(70, 30)
    assert H200.range_of(PREFILL, split) == SMRange(0, 12)
    assert H200.range_of(DECODE, split) == SMRange(12, 15)
    assert H200.count(SMRange(0, 12)) == 96
    assert H200.count(SMRange(12, 15)) == 36
    assert H200.percentage(SMRange(0, 12)) == pytest.approx(72.7, abs=0.1)


def test_unpartitioned_is_every_unit_for_both():
    for role in (PREFILL, DECODE):
        assert H200.range_of(role, UNPARTITIONED) == SMRange(0, 15)


def test_shares_over_100_overlap_in_the_middle():
    split = SMAllocation(80, 60)
    prefill, decode = H200.range_of(PREFILL, split), H200.range_of(DECODE, split)
    assert prefill.first == 0 and decode.last == 15
    assert decode.first < prefill.last


@pytest.mark.parametrize("split", [SMAllocation(99, 1), SMAllocation(1, 99)])
def test_each_role_keeps_a_unit(split):
    prefill, decode = H200.range_of(PREFILL, split), H200.range_of(DECODE, split)
    assert prefill.last == decode.first
    assert min(H200.count(prefill), H200.count(decode)) >= 8


@settings(deadline=None)  # the machine may be busy
@given(units, percentages, percentages)
def test_shares_within_100_have_no_unit_in_common(cut, x, y):
    split = SMAllocation(x, y)
    prefill, decode = cut.range_of(PREFILL, split), cut.range_of(DECODE, split)
    assert prefill.first == 0 < prefill.last
    assert decode.first < decode.last == len(cut.sizes)
    if not split.is_overlapping:
        assert prefill.last <= decode.first
    if x + y == 100:
        assert prefill.last == decode.first, "no unit is left over"


@settings(deadline=None)  # the machine may be busy
@given(units, percentages, percentages)
def test_a_range_is_within_one_unit_of_the_percentage(cut, x, y):
    split = SMAllocation(x, y)
    for role in (PREFILL, DECODE):
        asked = cut.total * split.percentage_of(role) / 100
        assert abs(cut.count(cut.range_of(role, split)) - asked) <= max(cut.sizes)


@settings(deadline=None)  # the machine may be busy
@given(units, percentages, percentages)
def test_ranges_are_all_that_a_split_can_give(cut, x, y):
    for role in (PREFILL, DECODE):
        assert cut.range_of(role, SMAllocation(x, y)) in list(cut.ranges(role))


@settings(deadline=None)  # the machine may be busy
@given(units, percentages)
def test_a_larger_share_is_never_fewer_units(cut, x):
    if x < 99:
        for role in (PREFILL, DECODE):
            less, more = (SMAllocation(s, s) for s in (x, x + 1))
            if less.is_overlapping == more.is_overlapping:
                assert cut.count(cut.range_of(role, less)) <= cut.count(
                    cut.range_of(role, more)
                )
