# SPDX-License-Identifier: Apache-2.0
"""The processes of one instance: residents, and the pair of workers that serves.

Lives in the main process. All processes are started at once; workers wait for their
resident to answer, so what they do before attaching overlaps with its loading.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglang.semi_pd.config import SemiPDConfig, for_role
from sglang.semi_pd.errors import WorkerStartError
from sglang.semi_pd.launch import start_progress
from sglang.semi_pd.server import fork_server
from sglang.semi_pd.utils import InstanceRole
from sglang.semi_pd.workers import worker_process
from sglang.semi_pd.workers.worker_spec import WorkerSpec

if TYPE_CHECKING:
    from sglang.semi_pd.partition.sm_partition import SMPartition
    from sglang.semi_pd.sm_allocation import SMAllocation
    from sglang.srt.server_args import PortArgs, ServerArgs

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 10.0
STARTED_TOGETHER = (InstanceRole.RESIDENT, InstanceRole.PREFILL, InstanceRole.DECODE)


@dataclass(frozen=True, slots=True)
class Worker:
    """A started process and the pipe on which it says that it is ready."""

    spec: WorkerSpec
    process: BaseProcess
    ready: Connection

    @property
    def name(self) -> str:
        """Its role, and its rank where there are several."""
        return self.spec.title.removeprefix("sglang::semi_pd_")

    @property
    def pid(self) -> int:
        pid = self.process.pid
        assert pid is not None, "the process was started"
        return pid


class WorkerGroup:
    """Starts, awaits and stops the processes of one instance."""

    def __init__(
        self,
        server_args: ServerArgs,
        port_args: PortArgs,
        run_directory: Path,
        partition: SMPartition,
    ) -> None:
        self._server_args = server_args
        self._port_args = port_args
        self._run_directory = run_directory
        self._partition = partition
        self.generation = 0
        self.workers: list[Worker] = []

    def start(self, allocation: SMAllocation) -> None:
        """Start every process; see ``wait_ready`` for when they serve."""
        fork_server.start()
        self.generation += 1
        for role in STARTED_TOGETHER:
            for rank in range(self._server_args.tp_size):
                self.workers.append(self._launch(self._spec(role, rank, allocation)))

    def wait_ready(self) -> dict[InstanceRole, dict[str, Any]]:
        """Block until every process is ready; returns what rank 0 of each role said.

        Raises:
            WorkerStartError: one ended before it was ready.
        """
        said: dict[InstanceRole, dict[str, Any]] = {}
        waiting = list(self.workers)
        while waiting:
            spoke = wait([worker.ready for worker in waiting])
            for worker in [w for w in waiting if w.ready in spoke]:
                info = _said(worker)
                if isinstance(info, start_progress.Phase):
                    start_progress.enter(info.doing, worker.name)
                    continue
                waiting.remove(worker)
                start_progress.leave("ready", worker.name)
                if worker.spec.tp_rank == 0:
                    said[worker.spec.role] = info
                logger.info("%s is ready (pid %d)", worker.spec.title, worker.pid)
        return said

    def of_role(self, role: InstanceRole) -> Iterator[Worker]:
        """The processes of one role, by rank."""
        return (worker for worker in self.workers if worker.spec.role is role)

    def stop(self) -> None:
        """End every process; when it returns, all have been joined."""
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for worker in self.workers:
            worker.process.terminate()
        for worker in self.workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                logger.warning("%s did not end; killing it", worker.spec.title)
                worker.process.kill()
                worker.process.join()

    def _launch(self, spec: WorkerSpec) -> Worker:
        process, ready = fork_server.launch(
            worker_process.run, spec, name=spec.title, environment=spec.environment
        )
        return Worker(spec, process, ready)

    def _spec(
        self, role: InstanceRole, rank: int, allocation: SMAllocation
    ) -> WorkerSpec:
        args = self._server_args
        is_green = self._partition.name == "green" and args.device == "cuda"
        changes_sms = is_green and role.is_worker
        return WorkerSpec(
            role=role,
            generation=self.generation,
            server_args=role_server_args(args, role, changes_sms=changes_sms),
            port_args=self._ports(role),
            gpu_id=args.base_gpu_id + rank * args.gpu_id_step,
            tp_rank=rank,
            moe_ep_rank=rank // (args.tp_size // args.ep_size),
            run_directory=self._run_directory,
            environment={
                **os.environ,
                **self._partition.environment(role, allocation),
            },
            percentage=allocation.percentage_of(role) if role.is_worker else 100,
            pool_bytes=SemiPDConfig.from_server_args(args).pool_bytes,
            has_prefix_cache=not args.disable_radix_cache,
            cores=self._partition.cores(role, allocation),
            split=allocation if changes_sms else None,
        )

    def _ports(self, role: InstanceRole) -> PortArgs:
        from sglang.srt.utils.network import get_free_port

        if role is InstanceRole.PREFILL:
            return self._port_args
        name = f"{role.value}-{self.generation}"
        return dataclasses.replace(
            self._port_args,
            scheduler_input_ipc_name=input_address(self._run_directory, name),
            nccl_port=get_free_port(),
        )


def input_address(run_directory: Path, worker: str) -> str:
    """ZeroMQ address on which a worker receives requests of the main process."""
    return f"ipc://{run_directory}/{worker}"


def role_server_args(
    server_args: ServerArgs, role: InstanceRole, *, changes_sms: bool = False
) -> ServerArgs:
    """Resolve the user's arguments again, for one role.

    Seeds are drawn at resolution, so they are taken from what the main process got.

    Args:
        changes_sms: whether the worker changes its SMs while it runs.
    """
    changes: dict[str, Any] = {
        "random_seed": server_args.random_seed,
        "enable_unified_memory": False,
    }
    if role is not InstanceRole.PREFILL:
        changes["disable_radix_cache"] = True  # the tree is prefill's
    if role.is_worker:
        changes["disaggregation_mode"] = role.value
        # The backend with the fewest side effects; its classes are never used.
        changes["disaggregation_transfer_backend"] = "nixl"
    if role is not InstanceRole.PREFILL:
        # Prefill owns the prefix cache; there is one address to publish its events on.
        changes["kv_events_config"] = None
    if changes_sms and role is InstanceRole.PREFILL:
        # A graph keeps to the SMs that it was captured on.
        changes["cuda_graph_backend_prefill"] = "disabled"
    return for_role(server_args, role.value, **changes)


def _said(worker: Worker) -> Any:
    """A phase of its start, or the last it says: what it has to tell of itself."""
    try:
        return worker.ready.recv()
    except EOFError:
        worker.process.join(timeout=10)
        raise WorkerStartError(
            f"{worker.spec.title} ended before it was ready",
            why=f"exit code {worker.process.exitcode}; its own lines above say more",
            mend="-9 is mostly the kernel short of memory: see dmesg",
        ) from None
