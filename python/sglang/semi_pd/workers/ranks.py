# SPDX-License-Identifier: Apache-2.0
"""The ranks of a tensor-parallel group: what they agree on, and what each has.

Each rank has pages and rows of its own, whose numbers differ. What they schedule must
not: a count that only one of them has would have them run different batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch.distributed import ProcessGroup, ReduceOp

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """One rank and the others. All of them call the same method at the same point.

    Attributes:
        rank: this one's number.
        size: how many there are.
        group: what they talk through; None if there is only one.
    """

    rank: int = 0
    size: int = 1
    group: ProcessGroup | None = None

    def least(self, counts: list[int]) -> list[int]:
        """The smallest of what the ranks pass, place by place."""
        if self.size == 1 or not counts:
            return counts
        together = torch.tensor(counts)
        torch.distributed.all_reduce(together, ReduceOp.MIN, self.group)
        return [int(count) for count in together.tolist()]

    def gathered(self, mine: T) -> list[T]:
        """What every rank passes, in their order; of the first rank alone not empty."""
        if self.size == 1:
            return [mine]
        assert self.group is not None, "several ranks have a group"
        first = torch.distributed.get_process_group_ranks(self.group)[0]
        theirs: list[T] | None = [mine] * self.size if self.rank == 0 else None
        torch.distributed.gather_object(mine, theirs, dst=first, group=self.group)
        return theirs or []


ALONE = Ranks()
"""Of one that has no others."""
