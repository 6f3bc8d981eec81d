# SPDX-License-Identifier: Apache-2.0
"""Which SMs a share names, where green contexts divide them.

A device is cut once into units of SMs (8 each on a Hopper; the last one has what is
left over besides). A worker's SMs are a run of units: prefill's begins at the first
unit, decode's ends with the last. Every process that cuts the same device gets the same
units, so two runs that do not overlap here name different SMs there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from sglang.semi_pd.sm_allocation import SMAllocation
from sglang.semi_pd.utils import InstanceRole


@dataclass(frozen=True, slots=True)
class SMRange:
    """Units ``first`` up to, not including, ``last``."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}..{self.last}"


@dataclass(frozen=True, slots=True)
class SMUnits:
    """The units of one device.

    Args:
        sizes: SMs of each unit, in the order of the cut; at least two units.
    """

    sizes: tuple[int, ...]

    @property
    def total(self) -> int:
        """SMs of all units."""
        return sum(self.sizes)

    def count(self, units: SMRange) -> int:
        """SMs of a run of units."""
        return sum(self.sizes[units.first : units.last])

    def percentage(self, units: SMRange) -> float:
        """SMs of a run of units, percent of all."""
        return 100 * self.count(units) / self.total

    def range_of(self, role: InstanceRole, allocation: SMAllocation) -> SMRange:
        """The units of a role: as near to its percentage as whole units come.

        Both roles get a unit at least. Two shares that sum to no more than 100 never
        have a unit in common; of two that sum to more, each is rounded by itself.
        """
        percentage = allocation.percentage_of(role)
        apart = not allocation.is_overlapping
        if role is InstanceRole.PREFILL:
            most = len(self.sizes) - (1 if apart else 0)
            return SMRange(0, min(most, max(1, self._nearest_cut(percentage))))
        least = 1 if apart else 0
        cut = self._nearest_cut(100 - percentage)
        return SMRange(min(len(self.sizes) - 1, max(least, cut)), len(self.sizes))

    def ranges(self, role: InstanceRole) -> Iterator[SMRange]:
        """All that ``range_of`` may give a role, the smallest first."""
        units = len(self.sizes)
        for count in range(1, units + 1):
            is_prefill = role is InstanceRole.PREFILL
            yield SMRange(0, count) if is_prefill else SMRange(units - count, units)

    def _nearest_cut(self, percentage: int) -> int:
        """How many units make up a percentage of the SMs; the fewer of two as near."""
        # In whole numbers, so that both sides of a split round to the same cut.
        sums = [0, *accumulate(self.sizes)]
        wanted = percentage * self.total
        return min(range(len(sums)), key=lambda cut: abs(100 * sums[cut] - wanted))
