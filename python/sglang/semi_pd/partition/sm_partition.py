# SPDX-License-Identifier: Apache-2.0
"""How the GPU's SMs are divided between the workers of one instance."""

from __future__ import annotations

import logging
import os
from functools import cached_property
from pathlib import Path
from typing import Protocol

from sglang.semi_pd.errors import ConfigError
from sglang.semi_pd.launch import gpu_rules, mps_daemons
from sglang.semi_pd.partition import green_check
from sglang.semi_pd.partition.cpu_share import cores_for
from sglang.semi_pd.partition.mps import MPSDaemon, MPSError
from sglang.semi_pd.partition.right_shares import (
    CANDIDATES,
    RightShares,
    best,
    default_cache,
    offered,
    require,
)
from sglang.semi_pd.sm_allocation import UNPARTITIONED, SMAllocation
from sglang.semi_pd.utils import InstanceRole

logger = logging.getLogger(__name__)


OVERLAPPING = SMAllocation(80, 100)
"""Wanted where caps may overlap and the user gave none: a decode step that may use all
SMs is the shortest, and prefill without a cap would take them from it."""


class SMPartition(Protocol):
    """Gives each process of the instance its share when it starts.

    Attributes:
        name: the backend, as the flag has it.
    """

    name: str

    def initial_split(
        self, wanted: SMAllocation, *, is_free: bool, allow_overlap: bool
    ) -> SMAllocation:
        """The split to start with: ``wanted``, or if ``is_free`` the nearest good one.

        Raises:
            ConfigError: ``wanted`` cannot be had, and was asked for by the user.
        """

    def offered_splits(
        self, current: SMAllocation, *, allow_overlap: bool
    ) -> tuple[SMAllocation, ...]:
        """The splits that a controller is to choose from; empty if any can be had.

        Where not every one can, the split in force is among them.
        """

    def environment(
        self, role: InstanceRole, allocation: SMAllocation
    ) -> dict[str, str]:
        """What to add to the environment of a process of ``role``."""

    def cores(self, role: InstanceRole, allocation: SMAllocation) -> frozenset[int]:
        """CPU cores that a process of ``role`` may use; empty means all of them."""

    def verify(self, pids: list[int]) -> None:
        """Make sure that the workers got what they were given.

        Raises:
            MPSError: one of them runs outside the partition.
        """

    def recover(self) -> None:
        """Be ready for new workers after the old ones were killed."""

    def stop(self) -> None:
        """Clean up; after the last process has ended."""


class NoPartition:
    """Every worker has the whole device; the GPU takes turns between them."""

    name = "none"

    def initial_split(
        self, wanted: SMAllocation, *, is_free: bool, allow_overlap: bool
    ) -> SMAllocation:
        return wanted

    def offered_splits(
        self, current: SMAllocation, *, allow_overlap: bool
    ) -> tuple[SMAllocation, ...]:
        return ()

    def environment(
        self, role: InstanceRole, allocation: SMAllocation
    ) -> dict[str, str]:
        return {}

    def cores(self, role: InstanceRole, allocation: SMAllocation) -> frozenset[int]:
        return frozenset()

    def verify(self, pids: list[int]) -> None:
        """Nothing was given."""

    def recover(self) -> None:
        """Nothing broke."""

    def stop(self) -> None:
        """Nothing to clean up."""


class CorePartition(NoPartition):
    """On a CPU host: each worker has its share of the cores.

    Args:
        name: ``green`` where it moves while a worker runs, ``mps`` where it is fixed
            when a worker starts, as on a GPU.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def cores(self, role: InstanceRole, allocation: SMAllocation) -> frozenset[int]:
        return cores_for(role, allocation)


class MPSPartition:
    """Workers are MPS clients, each capped at its percentage of the SMs.

    The percentage is a cap, not a reservation: two workers whose caps sum to no more
    than 100 may still run on the same SMs. It is fixed when a process starts.

    Args:
        daemon: started; ended by ``stop``.
    """

    name = "mps"
    description = "MPS percentages"

    def __init__(self, daemon: MPSDaemon, gpu: int = 0) -> None:
        self._daemon, self._gpu = daemon, gpu

    def initial_split(
        self, wanted: SMAllocation, *, is_free: bool, allow_overlap: bool
    ) -> SMAllocation:
        """As declared; only splits of shares whose products are right are good."""
        shares = self._right_shares
        asked = {wanted.prefill_percentage, wanted.decode_percentage}
        if not is_free and shares.are_right(asked):
            return wanted
        verdicts = shares.verdicts(asked.union(CANDIDATES))
        if not is_free:
            require(wanted, verdicts, allow_overlap=allow_overlap)
        near = OVERLAPPING if allow_overlap else wanted
        split = best(near, verdicts, allow_overlap=allow_overlap)
        logger.info("The split is %s, of shares that compute right here", split)
        return split

    def offered_splits(
        self, current: SMAllocation, *, allow_overlap: bool
    ) -> tuple[SMAllocation, ...]:
        """As declared; a worker with a share that computes wrong would not serve."""
        verdicts = self._right_shares.verdicts(CANDIDATES)
        return offered(current, verdicts, allow_overlap=allow_overlap)

    @cached_property
    def _right_shares(self) -> RightShares:
        return RightShares(self._daemon, self._gpu, default_cache())

    def environment(
        self, role: InstanceRole, allocation: SMAllocation
    ) -> dict[str, str]:
        if not role.is_worker:
            return self._daemon.outsider_environment()
        return self._daemon.client_environment(allocation.percentage_of(role))

    def cores(self, role: InstanceRole, allocation: SMAllocation) -> frozenset[int]:
        return frozenset()

    def verify(self, pids: list[int]) -> None:
        # With a wrong pipe directory CUDA runs without MPS and says nothing.
        missing = set(pids) - self._daemon.clients()
        if missing:
            raise MPSError(
                f"Processes {sorted(missing)} are not MPS clients",
                why="they would share the GPU by taking turns",
                mend="see the MPS daemon's log, or use --sm-partition-backend none",
            )

    def recover(self) -> None:
        """A killed client may leave the MPS server in a fault: start another daemon.

        Raises:
            MPSError: it does not start.
        """
        self._daemon.stop()
        self._daemon.start()

    def stop(self) -> None:
        """End the daemon."""
        self._daemon.stop()


class GreenPartition(MPSPartition):
    """Workers are MPS clients without a cap; green contexts divide the SMs."""

    name = "green"
    description = "green contexts"

    def initial_split(
        self, wanted: SMAllocation, *, is_free: bool, allow_overlap: bool
    ) -> SMAllocation:
        return wanted  # every worker checks the streams it is to use

    def offered_splits(
        self, current: SMAllocation, *, allow_overlap: bool
    ) -> tuple[SMAllocation, ...]:
        return ()  # any, rounded to units of SMs

    def environment(
        self, role: InstanceRole, allocation: SMAllocation
    ) -> dict[str, str]:
        return super().environment(role, UNPARTITIONED)


def start_partition(
    backend: str,
    device: str,
    directory: Path,
    *,
    gpu: int = 0,
    green_refused: str = "",
) -> SMPartition:
    """The partition for ``--sm-partition-backend``, ready for processes to start.

    ``auto`` is green contexts where they work, else MPS percentages, else none; the log
    says what was chosen and why.

    Args:
        gpu: the first GPU of the instance.
        green_refused: why the other arguments exclude green contexts; empty if not.

    Raises:
        ConfigError: another MPS daemon is in the way, or what was asked for cannot
            be had of this GPU.
        MPSError: what was asked for needs MPS, which does not work.
    """
    if device == "cuda":  # undivided processes would join it as well
        mps_daemons.require_no_stranger(os.environ)
    if backend == "none":
        return NoPartition()
    if device == "cpu":
        return CorePartition("mps" if backend == "mps" else "green")
    if device != "cuda":
        return NoPartition()
    try:
        gpu_rules.require_divisible_at(gpu, os.environ)
        if backend == "green" and green_refused:
            raise ConfigError(
                "--sm-partition-backend green is refused",
                why=green_refused,
                mend="use --sm-partition-backend mps, or --attention-backend triton "
                "with SGLang's own schedule and decode graphs",
            )
        daemon = MPSDaemon(directory)
        daemon.start()
    except (ConfigError, MPSError) as error:
        if backend != "auto":
            raise
        logger.warning("The SMs are not divided; the workers take turns. %s", error)
        return NoPartition()
    partition = _choose(backend, daemon, gpu, green_refused)
    logger.info("The SMs are divided by %s", partition.description)
    return partition


def _choose(
    backend: str, daemon: MPSDaemon, gpu: int, green_refused: str
) -> MPSPartition:
    if backend == "mps":
        return MPSPartition(daemon, gpu)
    green = GreenPartition(daemon)
    if backend == "auto":
        client = green.environment(InstanceRole.PREFILL, UNPARTITIONED)
        environment = {**os.environ, **client}
        why_not = green_refused or green_check.why_not(environment, gpu)
        if why_not:
            logger.warning("Green contexts are not used: %s", why_not)
            return MPSPartition(daemon, gpu)
    return green
