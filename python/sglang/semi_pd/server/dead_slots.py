# SPDX-License-Identifier: Apache-2.0
"""What the block tables say of pairs that died, and room in them for the next pair.

A worker's slot stays until a new prefill worker has taken over what is in it. A pair
that dies before it came to that leaves its own slots beside those it was to empty.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from sglang.semi_pd.memory.block_table import BlockTable
from sglang.semi_pd.server.memory_reader import attach_table
from typing_extensions import Self


class DeadSlots:
    """The slots that dead workers have, in the table of each rank."""

    def __init__(self, tables: Sequence[BlockTable]) -> None:
        self._tables = tables

    @classmethod
    def of_residents(cls, socket_paths: Iterable[Path]) -> Self:
        """Attach to residents that are ready.

        Raises:
            WorkerStartError: one does not answer, or refuses.
        """
        return cls([attach_table(path)[1] for path in socket_paths])

    def had_begun(self, fallen: Collection[int]) -> bool:
        """Whether these generations had taken over all that older ones had left."""
        return not any(_left_to(fallen, table) for table in self._tables)

    def join(self, fallen: Collection[int]) -> None:
        """Put what pairs have that had not begun to what they were to take over.

        Else no slot were left if pair after pair died so soon. The next prefill worker
        finds all of it there: nothing is freed here.
        """
        for table in self._tables:
            left = _left_to(fallen, table)
            for slot in table.slots_of(range(1, max(fallen) + 1)) if left else ():
                if slot not in left:
                    table.inherit(slot, left[0])


def _left_to(fallen: Collection[int], table: BlockTable) -> list[int]:
    """The slots of the oldest generation before these that has any."""
    found = (table.slots_of([older]) for older in range(1, min(fallen)))
    return next(filter(None, found), [])
