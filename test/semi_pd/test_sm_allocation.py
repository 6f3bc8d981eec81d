# SPDX-License-Identifier: Apache-2.0
"""SMAllocation: what is a share, what is a split, when may shares overlap."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sglang.semi_pd.errors import ConfigError
from sglang.semi_pd.sm_allocation import UNPARTITIONED, SMAllocation
from sglang.semi_pd.utils import InstanceRole

percentages = st.integers(1, 100)
splits = st.builds(SMAllocation, percentages, percentages)


@pytest.mark.parametrize("value", [0, -1, 101, 50.0, True, "50", None])
@pytest.mark.parametrize("name", ["prefill_percentage", "decode_percentage"])
def test_a_share_is_a_whole_percentage(name: str, value: object) -> None:
    shares = {"prefill_percentage": 50, "decode_percentage": 50, name: value}
    with pytest.raises(ValueError, match=name):
        SMAllocation(**shares)  # type: ignore[arg-type]


def test_overlap_needs_leave() -> None:
    split = SMAllocation(80, 60)
    with pytest.raises(ConfigError, match="= 140 exceeds 100"):
        split.validate()
    assert split.validate(allow_overlap=True) is split
    assert SMAllocation(70, 30).validate() == SMAllocation(70, 30)


@pytest.mark.parametrize("text", ["9/91", "91/9", "5/5"])
def test_a_server_gives_no_worker_less_than_a_tenth(text: str) -> None:
    for allow_overlap in (False, True):
        with pytest.raises(ConfigError, match="than 10 %.*\n.*between 10 and 100"):
            SMAllocation.parse(text).validate(allow_overlap=allow_overlap)
    assert SMAllocation(10, 90).validate() and SMAllocation(90, 10).validate()


def test_no_partition_is_no_overlap() -> None:
    assert UNPARTITIONED.validate() is UNPARTITIONED
    assert UNPARTITIONED.is_unpartitioned
    assert not SMAllocation(100, 99).is_unpartitioned


def test_shares_are_normalised_only_where_they_overlap() -> None:
    assert SMAllocation(100, 60).prefill_share == pytest.approx(100 / 160)
    assert SMAllocation(100, 60).decode_share == pytest.approx(60 / 160)
    assert SMAllocation(40, 20).prefill_share == pytest.approx(0.4)
    with pytest.raises(ValueError, match="resident"):
        UNPARTITIONED.share_of(InstanceRole.RESIDENT)


def test_a_split_is_a_value() -> None:
    split = SMAllocation(prefill_percentage=80, decode_percentage=20)
    assert split == SMAllocation(80, 20)
    assert split.as_dict() == {"prefill_percentage": 80, "decode_percentage": 20}
    assert SMAllocation.parse(str(split)) == split
    with pytest.raises(dataclasses.FrozenInstanceError):
        split.prefill_percentage = 10  # type: ignore[misc]


@pytest.mark.parametrize("text", ["70", "70/", "a/b", "70/30/0", "-1/50"])
def test_text_that_is_no_split(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a split"):
        SMAllocation.parse(text)


@given(splits, st.integers(1, 50), st.integers(50, 100))
def test_clamping_stays_between(split: SMAllocation, low: int, high: int) -> None:
    for share in split.clamped(low, high).as_dict().values():
        assert low <= share <= high
