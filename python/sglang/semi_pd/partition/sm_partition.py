# SPDX-License-Identifier: Apache-2.0
"""How the GPU's SMs are divided between the workers of one instance."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Protocol

from sglang.semi_pd.errors import ConfigError
from sglang.semi_pd.partition.mps import MPSDaemon, MPSError
from sglang.semi_pd.sm_allocation import SMAllocation
from sglang.semi_pd.utils import InstanceRole

logger = logging.getLogger(__name__)


class SMPartition(Protocol):
    """Gives each process of the instance its share when it starts."""

    name: str

    def start(self) -> None:
        """Get ready; before the first process starts."""

    def environment(
        self, role: InstanceRole, allocation: SMAllocation
    ) -> dict[str, str]:
        """What to add to the environment of a process of ``role``."""

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
    """Every worker sees the whole device; the GPU takes turns between them."""

    name = "none"

    def start(self) -> None:
        """Nothing to get ready."""

    def environment(
        self, role: InstanceRole, allocation: SMAllocation
    ) -> dict[str, str]:
        return {}

    def verify(self, pids: list[int]) -> None:
        """Nothing was given."""

    def recover(self) -> None:
        """Nothing broke."""

    def stop(self) -> None:
        """Nothing to clean up."""


class MPSPartition:
    """Workers are MPS clients, each capped at its percentage of the SMs.

    The percentage is a cap, not a reservation: two workers whose caps sum to no more
    than 100 may still run on the same SMs. It is fixed when a process starts.
    """

    name = "mps"

    def __init__(self, directory: Path) -> None:
        self._daemon = MPSDaemon(directory)

    def start(self) -> None:
        """Start the daemon.

        Raises:
            MPSError: it does not start.
        """
        self._daemon.start()

    def environment(
        self, role: InstanceRole, allocation: SMAllocation
    ) -> dict[str, str]:
        if not role.is_worker:
            return self._daemon.outsider_environment()
        return self._daemon.client_environment(allocation.percentage_of(role))

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


def start_partition(backend: str, device: str, directory: Path) -> SMPartition:
    """The partition for ``--sm-partition-backend``, ready for processes to start.

    Raises:
        ConfigError: the backend cannot be had on this machine.
        MPSError: MPS was asked for and does not work.
    """
    if device != "cuda" or backend == "none":
        return NoPartition()
    if backend == "green":
        raise ConfigError(
            "--sm-partition-backend green is refused",
            why="green contexts are not supported yet",
            mend="use mps or auto",
        )
    _refuse_inherited_daemon()
    try:
        partition = MPSPartition(directory)
        partition.start()
    except MPSError as error:
        if backend == "mps":
            raise
        logger.warning("The SMs are not divided; the workers take turns. %s", error)
        return NoPartition()
    return partition


def _refuse_inherited_daemon() -> None:
    inherited = os.environ.get("CUDA_MPS_PIPE_DIRECTORY")
    if inherited:
        raise ConfigError(
            f"CUDA_MPS_PIPE_DIRECTORY={inherited} is refused",
            why="it names an MPS daemon that is not ours; Semi-PD runs its own",
            mend="unset CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_ACTIVE_THREAD_PERCENTAGE",
        )
