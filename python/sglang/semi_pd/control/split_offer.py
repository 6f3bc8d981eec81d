# SPDX-License-Identifier: Apache-2.0
"""The splits that a mechanism can bring into force, and what is known of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sglang.semi_pd.sm_allocation import SMAllocation


@dataclass(frozen=True, slots=True)
class WorkerSpeeds:
    """Speeds of the two workers under a split, relative to alone on the whole GPU.

    Args:
        prefill_beside: prefill's speed while decode runs, 0 to 1.
        prefill_alone: prefill's speed while decode is idle.
        decode_beside: decode's speed while prefill runs.
        decode_alone: decode's speed while prefill is idle.
    """

    prefill_beside: float
    prefill_alone: float
    decode_beside: float
    decode_alone: float

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} must be positive and finite, not {value!r}")


@dataclass(frozen=True, slots=True)
class SplitOffer:
    """One split that can be had; ``speeds`` where they were measured."""

    allocation: SMAllocation
    speeds: WorkerSpeeds | None = None


def in_order(allocations: Iterable[SMAllocation]) -> tuple[SMAllocation, ...]:
    """Return the splits from most for decode to most for prefill, each once."""
    return tuple(
        sorted(
            set(allocations),
            key=lambda split: (split.prefill_share, split.prefill_percentage),
        )
    )


def default_splits(*, overlap_allowed: bool) -> tuple[SMAllocation, ...]:
    """Return a grid of ten percent, for a mechanism that can bring any split about."""
    shares = range(10, 91, 10)
    splits = [SMAllocation(share, 100 - share) for share in shares]
    if overlap_allowed:
        splits += [SMAllocation(share, 100) for share in (*shares, 100)]
    return in_order(splits)
