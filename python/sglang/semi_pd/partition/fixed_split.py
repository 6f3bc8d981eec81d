# SPDX-License-Identifier: Apache-2.0
"""A split that cannot be moved while the server serves, or not yet."""

from __future__ import annotations

from sglang.semi_pd.errors import RotationError
from sglang.semi_pd.sm_allocation import SMAllocation


class FixedSplit:
    """Where shares are taken when the workers start, or nothing is divided.

    Args:
        why: the reason it does not move.
        mend: what to do instead.
    """

    can_move = False
    move_cost_s = 0.0
    offered_splits: tuple[SMAllocation, ...] = ()

    def __init__(self, why: str, mend: str) -> None:
        self._why, self._mend = why, mend

    def apply(self, allocation: SMAllocation) -> None:
        """Refuse every move.

        Raises:
            RotationError: always.
        """
        raise RotationError(
            f"{allocation} is not in force",
            why=self._why,
            mend=self._mend,
        )


class SplitBeforeStart:
    """Until the server has started, and tried what works on its GPU.

    Args:
        can_move: whether the split is going to move once it has.
    """

    def __init__(self, *, can_move: bool) -> None:
        self.can_move = can_move

    def apply(self, allocation: SMAllocation) -> None:
        """Refuse.

        Raises:
            RotationError: always.
        """
        raise RotationError(
            f"{allocation} is not in force",
            why="the server has not started",
            mend="wait until it serves",
        )
