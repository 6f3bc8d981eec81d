# SPDX-License-Identifier: Apache-2.0
"""Moving the split between prefill and decode while the server serves."""

from __future__ import annotations

import logging
import threading
import time
from typing import Protocol, runtime_checkable

from sglang.semi_pd.errors import RotationError
from sglang.semi_pd.sm_allocation import SMAllocation

__all__ = ["ProcessRotationManager", "SMAllocation", "SplitMechanism"]

logger = logging.getLogger(__name__)


class SplitMechanism(Protocol):
    """What can bring a split into force without losing a request.

    Attributes:
        can_move: whether it ever does; False where the split is fixed at the start.
    """

    can_move: bool

    def apply(self, allocation: SMAllocation) -> str | None:
        """Return when both workers run with ``allocation``: how it went, if it matters.

        Raises:
            RotationError: they do not; the old split is in force.
        """


@runtime_checkable
class StatesMoves(Protocol):
    """A mechanism that says what its moves cost and which splits it has.

    Attributes:
        move_cost_s: what one move takes from serving, seconds.
        offered_splits: the only splits it can bring into force; empty if any.
    """

    move_cost_s: float
    offered_splits: tuple[SMAllocation, ...]


class ProcessRotationManager:
    """Keeps the split in force and moves it on request, one move at a time.

    Lives in the main process; the operator and the controller both call it.
    """

    def __init__(
        self, mechanism: SplitMechanism, initial: SMAllocation, *, allow_overlap: bool
    ) -> None:
        self._mechanism = mechanism
        self._current = initial
        self._allow_overlap = allow_overlap
        self._one_move = threading.Lock()
        self._moves = self._failures = 0
        self._last_failure = ""

    def use(self, mechanism: SplitMechanism) -> None:
        """Move the split by ``mechanism`` from now on: at the start it is chosen late.

        A GPU has to be tried before it is known which one works.
        """
        self._mechanism = mechanism

    @property
    def current_allocation(self) -> SMAllocation:
        """The split in force."""
        return self._current

    def begin_with(self, allocation: SMAllocation) -> None:
        """The split the workers start with, before there are any."""
        self._current = allocation

    @property
    def can_move(self) -> bool:
        """Whether the split can be moved while serving."""
        return self._mechanism.can_move

    @property
    def move_cost_s(self) -> float:
        """What a move takes from serving, seconds; 0 where it is not stated."""
        mechanism = self._mechanism
        return mechanism.move_cost_s if isinstance(mechanism, StatesMoves) else 0.0

    @property
    def offered_splits(self) -> tuple[SMAllocation, ...]:
        """The splits that can be had; empty if any can."""
        mechanism = self._mechanism
        return mechanism.offered_splits if isinstance(mechanism, StatesMoves) else ()

    def request_sm_reallocation(self, allocation: SMAllocation) -> bool:
        """Bring a split into force; False leaves the old one serving, see the log.

        Raises:
            ConfigError: a share is too small, or they sum to more than 100 where they
                may not.
        """
        return self.move(allocation, "asked for")

    def move(self, allocation: SMAllocation, why: str) -> bool:
        """As ``request_sm_reallocation``; the one line of the log says why.

        Raises:
            ConfigError: as there.
        """
        allocation.validate(allow_overlap=self._allow_overlap)
        with self._one_move:
            began = time.monotonic()
            try:
                course = self._mechanism.apply(allocation)
            except RotationError as error:
                self._failures += 1
                self._last_failure = error.in_one_line()
                logger.warning("The split stays %s (%s): %s", self._current, why, error)
                return False
            self._moves += 1
            logger.info(
                "The split moved from %s to %s (%s) in %.2f s%s",
                self._current,
                allocation,
                why,
                time.monotonic() - began,
                f": {course}" if course else "",
            )
            self._current = allocation
        return True

    def get_status(self) -> dict[str, object]:
        """The split in force and what became of requests to move it."""
        return {
            "current_sm_allocation": self._current.as_dict(),
            "moves": self._moves,
            "failed_moves": self._failures,
            "last_failure": self._last_failure,
        }
