# SPDX-License-Identifier: Apache-2.0
"""Who owns which id, and which ids are free: the core of the block table.

``owner[]`` is the truth. The free stack and the counters are caches of it, rebuilt in
one pass when a process died half way through an operation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from sglang.semi_pd.memory.block_table_layout import Word

Ids = npt.NDArray[np.int64]

FREE = 0

# Journal operations: what the next locker does with the ids of a half-done one.
NOTHING = 0
TAKE = 1  # undo: the ids are free again
GIVE = 2  # finish: the ids are free
MOVE = 3  # undo: the ids belong to the giver
REBUILD = 4  # the stack is no longer to be trusted as a journal, only owner[]
UPDATE = 5  # something else changed: only the caches need rebuilding
INHERIT = 6  # finish: the sums of borrows in scratch are the heir's

# Tests put a function here to end the process at a named instant.
_crash_point: Callable[[str], None] | None = None


def crash_point(name: str) -> None:
    """An instant at which a test may end this process."""
    if _crash_point is not None:
        _crash_point(name)


class Journal:
    """The one operation in progress, if any; lives in header words."""

    def __init__(self, words: memoryview) -> None:
        self._words = words

    def begin(self, op: int, pool: int, slot: int, base: int, count: int) -> None:
        """Record an operation over ``stack[base : base + count]`` of ``pool``."""
        words = self._words
        words[Word.JOURNAL_POOL] = pool
        words[Word.JOURNAL_SLOT] = slot
        words[Word.JOURNAL_BASE] = base
        words[Word.JOURNAL_COUNT] = count
        words[Word.JOURNAL_OP] = op  # last: from here on a death is repaired

    def end(self) -> None:
        """Nothing is half done any more."""
        self._words[Word.JOURNAL_OP] = NOTHING


class IdPool:
    """Ids 1..capacity of one kind (pages or rows). The caller holds the table's lock.

    The stack is also the journal's list of ids, so that logging an operation costs a
    few words whatever its size::

        stack  | free ids ...         | room for as many ids as are owned |
               0          top - n    top                  top + n   capacity
                          [-- TAKE --)[--- GIVE or MOVE ---)
    """

    def __init__(
        self,
        words: memoryview,
        first_word: int,
        owner: npt.NDArray[Any],
        stack: npt.NDArray[Any],
        held: memoryview,
    ) -> None:
        self.owner, self.stack, self.held = owner, stack, held
        self.capacity = len(owner) - 1
        self._words = words
        self._top, self._peak = first_word, first_word + 1
        self._journal = Journal(words)

    @property
    def free(self) -> int:
        """How many ids are free."""
        return int(self._words[self._top])

    @property
    def peak(self) -> int:
        """The most ids ever owned at once."""
        return int(self._words[self._peak])

    def take(self, slot: int, count: int) -> Ids:
        """Pop ``count`` free ids for ``slot``; the caller has checked ``free``."""
        words = self._words
        top = words[self._top]
        base = top - count
        ids: Ids = self.stack[base:top][::-1].copy()
        self._journal.begin(TAKE, self._top, slot, base, count)
        crash_point("take.begun")
        self.owner[ids] = slot
        crash_point("take.owned")
        words[self._top] = base
        self.held[slot] += count
        used = self.capacity - base
        if used > words[self._peak]:
            words[self._peak] = used
        crash_point("take.counted")
        self._journal.end()
        return ids

    def give(self, slot: int, ids: Ids) -> None:
        """Free ``ids``, all owned by ``slot`` and different from each other."""
        words, count = self._words, len(ids)
        top = words[self._top]
        # Taken again they come in the same order: a request's pages, one after another.
        self.stack[top : top + count] = ids[::-1]
        self._journal.begin(GIVE, self._top, slot, top, count)
        crash_point("give.begun")
        self.owner[ids] = FREE
        crash_point("give.freed")
        words[self._top] = top + count
        self.held[slot] -= count
        crash_point("give.counted")
        self._journal.end()

    def move(self, slot: int, ids: Ids, to_slot: int) -> None:
        """Hand ``ids``, all owned by ``slot`` and different, to ``to_slot``."""
        count, top = len(ids), self.free
        self.stack[top : top + count] = ids
        self._journal.begin(MOVE, self._top, slot, top, count)
        crash_point("move.begun")
        self.owner[ids] = to_slot
        crash_point("move.owned")
        self.held[slot] -= count
        self.held[to_slot] += count
        crash_point("move.counted")
        self._journal.end()

    def owned_by(self, slot: int) -> Ids:
        """Every id that ``slot`` owns, ascending: one pass over ``owner``."""
        return np.flatnonzero(self.owner == slot)

    def apply_journal(self) -> None:
        """Finish or undo the half-done operation, if it is this pool's. Idempotent."""
        words = self._words
        op = words[Word.JOURNAL_OP]
        if op not in (TAKE, GIVE, MOVE) or words[Word.JOURNAL_POOL] != self._top:
            return
        base = words[Word.JOURNAL_BASE]
        ids = self.stack[base : base + words[Word.JOURNAL_COUNT]]
        self.owner[ids] = words[Word.JOURNAL_SLOT] if op == MOVE else FREE

    def rebuild(self) -> None:
        """Make stack and counters agree with ``owner``. Idempotent."""
        self.owner[0] = FREE
        free = np.flatnonzero(self.owner[1:] == FREE) + 1
        self.stack[: len(free)] = free[::-1]  # the lowest id is taken first
        self._words[self._top] = len(free)
        counts = np.bincount(self.owner[1:], minlength=len(self.held))
        for slot, count in enumerate(counts.tolist()):
            self.held[slot] = count if slot != FREE else 0

    def violations(self, name: str) -> list[str]:
        """What contradicts "free and owned are all ids, and disjoint"."""
        top, found = self.free, []
        if not 0 <= top <= self.capacity:
            return [f"{name}: free count {top} is not within 0..{self.capacity}"]
        stack = self.stack[:top]
        if top and (stack.min() < 1 or stack.max() > self.capacity):
            return [f"{name}: the free stack holds an id that does not exist"]
        if top and np.bincount(stack).max() > 1:
            found.append(f"{name}: an id is twice in the free stack")
        if self.owner[stack].any():
            found.append(f"{name}: an owned id is in the free stack")
        counts = np.bincount(self.owner[1:], minlength=len(self.held))
        if len(counts) > len(self.held):
            return [*found, f"{name}: an owner slot does not exist"]
        if counts[FREE] != top:
            found.append(f"{name}: {counts[FREE]} without owner, {top} in the stack")
        for slot, count in enumerate(counts.tolist()):
            if slot != FREE and count != self.held[slot]:
                found.append(
                    f"{name}: slot {slot} owns {count}, counted {self.held[slot]}"
                )
        return found
