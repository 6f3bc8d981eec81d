# SPDX-License-Identifier: Apache-2.0
"""Where everything of a block table lies in shared memory."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sglang.semi_pd.errors import SemiPDError
from sglang.semi_pd.memory.robust_mutex import REGION_BYTES, RobustMutex
from sglang.semi_pd.memory.shared_memory import SharedMemory

MAGIC = int.from_bytes(b"SEMIPDBT", "little")
VERSION = 2
MAX_WORKERS = 1024
MAX_IDS = 1 << 31
HEADER_WORDS = 64
_ALIGNMENT = 64


class LayoutMismatchError(SemiPDError):
    """The memory is not a block table that this code can read."""


class Word:
    """Index of each int64 in the header. Written under the lock unless said otherwise.

    Two pools (pages, rows) have the same three words: ``*_FREE`` + 0, 1, 2.
    """

    MAGIC = 0  # written last by create(): a half-made table is never attached
    VERSION = 1
    FINGERPRINT = 2
    NUM_PAGES = 3
    NUM_ROWS = 4
    PAGE_SIZE = 5
    NUM_WORKERS = 6
    TOKEN = 7  # random, one per table

    JOURNAL_OP = 8  # 0: nothing is half done
    JOURNAL_POOL = 9
    JOURNAL_SLOT = 10
    JOURNAL_BASE = 11
    JOURNAL_COUNT = 12

    PAGES_FREE = 16
    PAGES_PEAK = 17
    ROWS_FREE = 20
    ROWS_PEAK = 21

    RESERVE_TOTAL = 24
    BORROW_TOTAL = 25
    REPAIRS = 26
    AUDITS_RUN = 27
    AUDITS_FAILED = 28


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockTableLayout:
    """Sizes of a table, and from them the place of each array.

    ::

        0            128                640
        | mutex      | header words     | arrays, each aligned to 64 bytes ...
    """

    num_pages: int
    num_rows: int
    page_size: int
    num_workers: int

    def __post_init__(self) -> None:
        for name, value, most in (
            ("num_pages", self.num_pages, MAX_IDS),
            ("num_rows", self.num_rows, MAX_IDS),
            ("page_size", self.page_size, MAX_IDS),
            ("num_workers", self.num_workers, MAX_WORKERS),
        ):
            if not 1 <= value <= most:
                raise ValueError(f"{name}: {value} is not within 1..{most}")

    @property
    def shared_slot(self) -> int:
        """The pseudo worker that owns pages whose owner left while others borrow."""
        return self.num_workers + 1

    def fields(self) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
        """Name, dtype and shape of each array, in the order they lie.

        Slot 0 stands for "free", 1..num_workers for workers, the last for
        ``shared_slot``. Page 0 and row 0 are padding. ``page_borrows[0]`` is scratch
        for ``inherit``. ``slot_leased`` and the three after it are written by the
        slot's worker alone, without the lock.
        """
        slots, pages, rows = self.num_workers + 2, self.num_pages + 1, self.num_rows + 1
        return (
            ("slot_role", "i8", (slots,)),
            ("slot_epoch", "i8", (slots,)),
            ("slot_generation", "i8", (slots,)),
            ("slot_reserve", "i8", (slots,)),
            ("slot_pages", "i8", (slots,)),
            ("slot_rows", "i8", (slots,)),
            ("slot_borrows", "i8", (slots,)),
            ("slot_leased", "i8", (slots,)),
            ("slot_cached", "i8", (slots,)),
            ("slot_answered", "i8", (slots,)),
            ("slot_busy", "i8", (slots,)),
            ("page_owner", "u2", (pages,)),
            ("page_stack", "i8", (pages,)),
            ("page_borrowed", "u2", (pages,)),
            ("page_borrows", "u2", (slots, pages)),
            ("row_owner", "u2", (rows,)),
            ("row_stack", "i8", (rows,)),
            ("row_generation", "i8", (rows,)),
            ("row_committed", "i8", (rows,)),
            ("row_allocated", "i8", (rows,)),
            ("row_label", "u8", (rows,)),
        )

    def offsets(self) -> tuple[dict[str, int], int]:
        """Byte offset of each array, and the size of the whole table in bytes."""
        offset = REGION_BYTES + 8 * HEADER_WORDS
        found: dict[str, int] = {}
        for name, dtype, shape in self.fields():
            found[name] = offset
            nbytes = np.dtype(dtype).itemsize * int(np.prod(shape))
            offset += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        return found, offset

    @property
    def fingerprint(self) -> int:
        """63 bits that differ when any array, size or place differs."""
        text = f"{VERSION} {self} {self.fields()} {self.offsets()}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1


class TableState:
    """Views of one mapped table; holds no logic.

    Per-slot arrays are memoryviews, because single ints are read from them on the hot
    path and a memoryview gives those three times faster than numpy does.
    """

    def __init__(
        self, memory: SharedMemory, layout: BlockTableLayout, mutex: RobustMutex
    ) -> None:
        self.memory, self.layout, self.mutex = memory, layout, mutex
        self.words = _words(memory)
        offsets, _ = layout.offsets()

        def view(name: str) -> npt.NDArray[Any]:
            dtype, shape = next((d, s) for n, d, s in layout.fields() if n == name)
            return memory.ndarray(dtype, shape, offsets[name])

        self.slot_role = view("slot_role").data
        self.slot_epoch = view("slot_epoch").data
        self.slot_generation = view("slot_generation").data
        self.slot_reserve = view("slot_reserve").data
        self.slot_pages = view("slot_pages").data
        self.slot_rows = view("slot_rows").data
        self.slot_borrows = view("slot_borrows").data
        self.slot_leased = view("slot_leased").data
        self.slot_cached = view("slot_cached").data
        self.slot_answered = view("slot_answered").data
        self.slot_busy = view("slot_busy").data
        self.page_owner = view("page_owner")
        self.page_stack = view("page_stack")
        self.page_borrowed = view("page_borrowed")
        self.page_borrows = view("page_borrows")
        self.row_owner = view("row_owner")
        self.row_stack = view("row_stack")
        self.row_generation = view("row_generation")
        self.row_committed = view("row_committed")
        self.row_allocated = view("row_allocated")
        self.row_label = view("row_label")

    @classmethod
    def create(cls, layout: BlockTableLayout) -> TableState:
        """Make the shared memory of an empty table; every id is free."""
        _, nbytes = layout.offsets()
        memory = SharedMemory.create("semi_pd_block_table", nbytes)
        state = cls(memory, layout, RobustMutex.create(memory.buffer, 0))
        words = state.words
        words[Word.VERSION] = VERSION
        words[Word.FINGERPRINT] = layout.fingerprint
        words[Word.NUM_PAGES] = layout.num_pages
        words[Word.NUM_ROWS] = layout.num_rows
        words[Word.PAGE_SIZE] = layout.page_size
        words[Word.NUM_WORKERS] = layout.num_workers
        words[Word.TOKEN] = secrets.randbits(63)
        return state

    @classmethod
    def attach(cls, fd: int) -> TableState:
        """Map the table behind ``fd``.

        Raises:
            LayoutMismatchError: it is not a table, or not of this version or layout.
        """
        memory = SharedMemory.attach(fd)
        if memory.nbytes < REGION_BYTES + 8 * HEADER_WORDS:
            raise LayoutMismatchError(f"fd {fd} is too small for a block table")
        words = _words(memory)
        if words[Word.MAGIC] != MAGIC:
            raise LayoutMismatchError(f"fd {fd} is not a block table")
        if words[Word.VERSION] != VERSION:
            raise LayoutMismatchError(
                f"block table has version {words[Word.VERSION]}, not {VERSION}"
            )
        layout = BlockTableLayout(
            num_pages=words[Word.NUM_PAGES],
            num_rows=words[Word.NUM_ROWS],
            page_size=words[Word.PAGE_SIZE],
            num_workers=words[Word.NUM_WORKERS],
        )
        if words[Word.FINGERPRINT] != layout.fingerprint:
            raise LayoutMismatchError("block table has another layout than this code")
        if memory.nbytes != layout.offsets()[1]:
            raise LayoutMismatchError("block table has not the size of its layout")
        return cls(memory, layout, RobustMutex.attach(memory.buffer, 0))

    def publish(self) -> None:
        """Let others attach; the last act of making a table."""
        self.words[Word.MAGIC] = MAGIC


def _words(memory: SharedMemory) -> memoryview:
    header = memoryview(memory.buffer)[REGION_BYTES : REGION_BYTES + 8 * HEADER_WORDS]
    return header.cast("q")
