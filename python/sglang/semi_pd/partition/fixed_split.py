# SPDX-License-Identifier: Apache-2.0
"""A split that cannot be moved while the server serves."""

from __future__ import annotations

from sglang.semi_pd.errors import RotationError
from sglang.semi_pd.sm_allocation import SMAllocation


class FixedSplit:
    """What the GPU has in this version: shares are taken when the workers start."""

    can_move = False

    def apply(self, allocation: SMAllocation) -> None:
        """Refuse every move.

        Raises:
            RotationError: always.
        """
        raise RotationError(
            f"{allocation} is not in force",
            why="on a GPU this version fixes the split when the workers start",
            mend="restart with --initial-prefill-sm and --initial-decode-sm",
        )
