# SPDX-License-Identifier: Apache-2.0
"""What a block table answers with: values only, safe to send to another process."""

from __future__ import annotations

from dataclasses import dataclass

from sglang.semi_pd.errors import SemiPDError
from sglang.semi_pd.utils import InstanceRole


class FencedError(SemiPDError):
    """This worker was declared dead: it may not change the block table any more."""


@dataclass(frozen=True, slots=True)
class WorkerLease:
    """The right of one worker process to change the table, until its epoch is bumped.

    Attributes:
        slot: the worker's place in the table, 1..num_workers.
        epoch: counts the lives of that slot.
        role: which part the worker plays.
        generation: the caller's number for this worker process.
    """

    slot: int
    epoch: int
    role: InstanceRole
    generation: int


@dataclass(frozen=True, slots=True)
class RowState:
    """One request row; lengths in tokens."""

    owner: int
    generation: int
    committed: int
    allocated: int


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """A row that was handed over, and the label its giver put on it."""

    row: int
    label: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker says to whoever asked it for pages.

    Attributes:
        sequence: number of the last question it has answered.
        is_busy: it computes something that will end and then free or hand over pages.
    """

    sequence: int
    is_busy: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class InheritReport:
    """What went from a worker to its successor; references in ``borrows``."""

    pages: int
    rows: int
    borrows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReclaimReport:
    """What a dead worker left behind and where it went.

    ``pages_shared`` were owned by the dead and are borrowed by the living: they become
    free when the last borrower lets go. ``borrows_dropped`` counts references that the
    dead held.
    """

    slot: int
    pages_freed: int
    pages_kept: int
    pages_shared: int
    rows_freed: int
    rows_kept: int
    borrows_dropped: int


@dataclass(frozen=True, slots=True)
class AuditReport:
    """The outcome of one audit: no violations means every page and row is in order."""

    violations: tuple[str, ...]
    pages_free: int
    pages_owned: int
    rows_free: int
    rows_owned: int

    @property
    def ok(self) -> bool:
        """Whether nothing contradicts the invariants."""
        return not self.violations


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockUsage:
    """A consistent snapshot of the counters of one table.

    ``pages_by_role`` adds up the slots of a role; pages in nobody's hands but borrowed
    are in ``pages_shared``. Of a role's pages, ``leased_by_role`` are held ready and
    ``cached_by_role`` are in the prefix cache and in no request's use, as the workers
    last said; the others belong to requests. Lock times in nanoseconds; only
    locking that had to sleep counts.
    """

    page_size: int
    pages_total: int
    pages_free: int
    pages_peak: int
    pages_shared: int
    pages_reserved: int
    pages_by_slot: dict[int, int]
    pages_by_role: dict[str, int]
    leased_by_role: dict[str, int]
    cached_by_role: dict[str, int]
    borrows: int
    rows_total: int
    rows_free: int
    rows_peak: int
    rows_by_slot: dict[int, int]
    lock_waits: int
    lock_wait_total_ns: int
    lock_wait_max_ns: int
    lock_recoveries: int
    repairs: int
    audits_run: int
    audits_failed: int

    @property
    def running_by_role(self) -> dict[str, int]:
        """Pages of each role that requests hold."""
        return {
            role: max(0, owned - self.leased_by_role[role] - self.cached_by_role[role])
            for role, owned in self.pages_by_role.items()
        }

    @property
    def pages_used(self) -> int:
        """Pages that are not free."""
        return self.pages_total - self.pages_free
