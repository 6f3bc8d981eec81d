# SPDX-License-Identifier: Apache-2.0
"""Which blocks belong to which layer of which request, readable by every process."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
from sglang.semi_pd.memory.block_table_layout import LayoutMismatchError
from sglang.semi_pd.memory.id_pool import Ids
from sglang.semi_pd.memory.robust_mutex import REGION_BYTES, RobustMutex
from sglang.semi_pd.memory.shared_memory import SharedMemory

MAX_REQUEST_ID_BYTES = 128
ALL_LAYERS = -1
NO_ROW = 0

_HEADER_WORDS = 16
_MAGIC_VALUE = int.from_bytes(b"SEMIPDRX", "little")
_MAGIC, _NUM_BLOCKS, _PENDING, _ROW, _LAYER, _SEQUENCE = range(6)
_NOTHING, _ADDING, _REMOVING = range(3)


class RequestIndex:
    """A tag on every block: (request row, layer, sequence number).

    Lives in its own shared memory under its own robust mutex, which callers hold during
    each method::

        0        128              256
        | mutex  | header words   | row_hash | row_id | block_row | block_layer | ...

    Sequence numbers only grow, so the blocks of a layer are in order when sorted by
    them, and the blocks of an unfinished addition are those from ``_SEQUENCE`` on.
    """

    def __init__(self, memory: SharedMemory, num_blocks: int, mutex: RobustMutex):
        self.memory, self.mutex, self.num_blocks = memory, mutex, num_blocks
        self._words = _words(memory)
        views, _ = _layout(memory, num_blocks)
        self._row_hash, self._row_id, self._block_row, self._layer, self._seq = views

    @classmethod
    def create(cls, num_blocks: int) -> RequestIndex:
        """Make an empty index over blocks 1..num_blocks and as many request rows."""
        _, nbytes = _layout(None, num_blocks)
        memory = SharedMemory.create("semi_pd_request_index", nbytes)
        index = cls(memory, num_blocks, RobustMutex.create(memory.buffer, 0))
        index._words[_NUM_BLOCKS] = num_blocks
        index._words[_MAGIC] = _MAGIC_VALUE
        return index

    @classmethod
    def attach(cls, fd: int) -> RequestIndex:
        """Map the index behind ``fd``.

        Raises:
            LayoutMismatchError: it is not a request index of this layout.
        """
        memory = SharedMemory.attach(fd)
        header = REGION_BYTES + 8 * _HEADER_WORDS
        if memory.nbytes < header or _words(memory)[_MAGIC] != _MAGIC_VALUE:
            raise LayoutMismatchError(f"fd {fd} is not a request index")
        num_blocks = int(_words(memory)[_NUM_BLOCKS])
        if _layout(None, num_blocks)[1] != memory.nbytes:
            raise LayoutMismatchError("request index has another layout than this code")
        return cls(memory, num_blocks, RobustMutex.attach(memory.buffer, 0))

    @property
    def interrupted(self) -> bool:
        """Whether an addition or removal was begun and not finished."""
        return bool(self._words[_PENDING] != _NOTHING)

    def find(self, request_id: bytes) -> int:
        """The row of a request, ``NO_ROW`` if it has none."""
        for row in np.flatnonzero(self._row_hash == _hash(request_id)):
            if self._row_id[row] == request_id:
                return int(row)
        return NO_ROW

    def blocks(self, row: int, layer: int) -> Ids:
        """Blocks of one layer (or ``ALL_LAYERS``) in the order they were added."""
        tagged = self._block_row == row
        if layer != ALL_LAYERS:
            tagged &= self._layer == layer
        found = np.flatnonzero(tagged)
        return found[np.argsort(self._seq[found])]

    def rows(self) -> Ids:
        """Rows that have blocks."""
        return np.flatnonzero(np.bincount(self._block_row)[1:]) + 1

    def begin_adding(self) -> None:
        """From here to ``finish``, a death removes what ``add`` tagged."""
        self._words[_PENDING] = _ADDING

    def begin_removing(self, row: int, layer: int) -> None:
        """From here to ``finish``, a death completes the removal."""
        self._words[_ROW], self._words[_LAYER] = row, layer
        self._words[_PENDING] = _REMOVING

    def name_row(self, row: int, request_id: bytes) -> None:
        """Let ``find`` return ``row`` for this request."""
        self._row_id[row] = request_id
        self._row_hash[row] = _hash(request_id)

    def forget_rows(self, rows: Ids) -> None:
        """Let ``find`` return these rows no more."""
        self._row_hash[rows] = 0

    def add(self, row: int, layer: int, blocks: Ids) -> None:
        """Tag ``blocks`` as the next ones of a layer."""
        first = self._words[_SEQUENCE]
        self._seq[blocks] = np.arange(first, first + len(blocks))
        self._layer[blocks] = layer
        self._block_row[blocks] = row

    def finish(self, added: int = 0) -> None:
        """The addition of ``added`` blocks, or the removal, is complete."""
        self._words[_SEQUENCE] += added  # the instant from which an addition is kept
        self._words[_PENDING] = _NOTHING

    def clear(self, blocks: Ids) -> None:
        """Remove the tags of ``blocks``."""
        self._block_row[blocks] = NO_ROW

    def settle(self) -> None:
        """Undo an interrupted addition, complete an interrupted removal. Idempotent."""
        pending = self._words[_PENDING]
        if pending == _ADDING:
            self.clear(np.flatnonzero(self._seq >= self._words[_SEQUENCE]))
        elif pending == _REMOVING:
            self.clear(self.blocks(self._words[_ROW], self._words[_LAYER]))

    def untagged(self, owned: npt.NDArray[np.bool_]) -> Ids:
        """Blocks that somebody owns, shape (num_blocks + 1,), and no request has."""
        return np.flatnonzero(owned & (self._block_row == NO_ROW))

    def close(self) -> None:
        """Unmap."""
        self.mutex.close()
        self.memory.close()


def _layout(
    memory: SharedMemory | None, num_blocks: int
) -> tuple[list[npt.NDArray[Any]], int]:
    """Views of all arrays (none without memory) and the size of the index in bytes."""
    offset, views = REGION_BYTES + 8 * _HEADER_WORDS, []
    for dtype in ("u8", f"S{MAX_REQUEST_ID_BYTES}", "i4", "i4", "i8"):
        if memory is not None:
            views.append(memory.ndarray(dtype, num_blocks + 1, offset))
        offset += -(-np.dtype(dtype).itemsize * (num_blocks + 1) // 64) * 64
    return views, offset


def _words(memory: SharedMemory) -> memoryview:
    end = REGION_BYTES + 8 * _HEADER_WORDS
    return memoryview(memory.buffer)[REGION_BYTES:end].cast("q")


def _hash(request_id: bytes) -> int:
    """64 bits that are the same in every process, and never 0 ("no request")."""
    digest = hashlib.blake2b(request_id, digest_size=8).digest()
    return int.from_bytes(digest, "little") | 1
