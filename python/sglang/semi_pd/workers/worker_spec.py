# SPDX-License-Identifier: Apache-2.0
"""What a worker is told about itself when it is started."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sglang.semi_pd.utils import InstanceRole

if TYPE_CHECKING:
    from sglang.semi_pd.sm_allocation import SMAllocation
    from sglang.srt.server_args import PortArgs, ServerArgs

EXIT_FAILED = 1
"""Exit code of a process that was not asked to end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """One process of one rank.

    Attributes:
        generation: counts the pairs of workers; a rotation starts the next one.
        is_standby: whether another pair serves until this one takes over.
        server_args: resolved for the role.
        port_args: the addresses of this worker.
        environment: the whole environment the process is to have.
        cores: CPU cores it may use; empty means all of them.
        percentage: its share of the SMs.
        split: the split it begins with where a worker can change its SMs while it
            runs, by green contexts; None elsewhere.
        pool_bytes: size of the KV cache, None where the model decides.
        has_prefix_cache: whether finished sequences are kept for prompts that begin so.
    """

    role: InstanceRole
    generation: int
    server_args: ServerArgs
    port_args: PortArgs
    gpu_id: int
    tp_rank: int
    moe_ep_rank: int
    run_directory: Path
    environment: dict[str, str]
    cores: frozenset[int]
    percentage: int
    split: SMAllocation | None
    pool_bytes: int | None
    has_prefix_cache: bool
    is_standby: bool = False

    @property
    def title(self) -> str:
        """Process title, found by SGLang's own tools through its ``sglang::``."""
        rank = f"_TP{self.tp_rank}" if self.server_args.tp_size > 1 else ""
        return f"sglang::semi_pd_{self.role.value}{rank}"

    @property
    def device(self) -> str:
        """The device of this rank, as torch names it."""
        device = self.server_args.device
        return f"{device}:{self.gpu_id}" if device == "cuda" else device

    @property
    def resident_socket(self) -> Path:
        """Where the resident of this rank answers."""
        return self.run_directory / f"resident-{self.tp_rank}"

    @property
    def load_snapshot_path(self) -> str:
        """The file in which this worker publishes its load."""
        return load_snapshot_path(self.run_directory, self.role)

    @property
    def heartbeat_path(self) -> Path:
        """The file in which this worker counts its iterations."""
        name = f"heartbeat-{self.role.value}-{self.generation}-{self.tp_rank}"
        return self.run_directory / name

    @property
    def share_path(self) -> Path:
        """The file in which this worker reports its share of the SMs."""
        name = f"share-{self.role.value}-{self.generation}-{self.tp_rank}"
        return self.run_directory / name

    @property
    def handover_address(self) -> str:
        """Where this generation's decode worker receives handovers."""
        return handover_address(self.run_directory, self.generation)

    @property
    def give_back_address(self) -> str:
        """Where this generation's prefill worker gets requests back."""
        return give_back_address(self.run_directory, self.generation)


def input_address(run_directory: Path, role: InstanceRole, generation: int) -> str:
    """ZeroMQ address on which a worker receives requests of the main process."""
    return f"ipc://{run_directory}/{role.value}-{generation}"


def handover_address(run_directory: Path, generation: int) -> str:
    """ZeroMQ address on which decode worker ``generation`` receives handovers."""
    return f"ipc://{run_directory}/handover-{generation}"


def give_back_address(run_directory: Path, generation: int) -> str:
    """ZeroMQ address on which prefill worker ``generation`` gets requests back."""
    return f"ipc://{run_directory}/give-back-{generation}"


def load_snapshot_path(run_directory: Path, role: InstanceRole) -> str:
    """Where a role publishes its load; upstream's place would outlive the server."""
    return str(run_directory / f"load-{role.value}")
