# SPDX-License-Identifier: Apache-2.0
"""The processes of one instance: residents, and the pair of workers that serves.

Lives in the main process. At the start all processes are started at once; workers wait
for their resident to answer, so what they do before attaching overlaps its loading.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglang.semi_pd.config import SemiPDConfig, for_role
from sglang.semi_pd.errors import ConfigError, WorkerStartError
from sglang.semi_pd.launch import ports
from sglang.semi_pd.server import fork_server
from sglang.semi_pd.server.worker import Worker, WorkerPair, wait_ready
from sglang.semi_pd.utils import InstanceRole
from sglang.semi_pd.workers import worker_process
from sglang.semi_pd.workers.worker_spec import WorkerSpec, input_address

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from sglang.semi_pd.partition.sm_partition import SMPartition
    from sglang.semi_pd.sm_allocation import SMAllocation
    from sglang.srt.server_args import PortArgs, ServerArgs

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 10.0
PREFILL_GRAPH_TOKENS = (
    *(16, 32, 48, 64, 96, 128, 160, 208, 256),
    *(320, 400, 512, 640, 800, 1024),
    *(1280, 1600, 2048),
)
"""Prefill sizes that are captured; a batch is padded to the next one."""
PREFILL_GRAPH_LONGEST = 1024
"""Of those of one GPU; of a share of it that share. Longer ones keep their SMs busier
than launching them keeps a CPU. Capturing all of SGLang's sizes took 10 to 15 s of each
rotation, those up to 1024 tokens 6 s; and each is computed once, while others serve."""
PREFILL_GRAPH_FIELDS = ("cuda_graph_max_bs_prefill", "cuda_graph_bs_prefill")
PAIR = tuple(role for role in InstanceRole if role.is_worker)


class WorkerGroup:
    """Starts, awaits and stops the processes of one instance.

    Attributes:
        partition: gives each process its share.
        residents: one for each rank; they live as long as the instance.
        pair: the workers that serve.
        standby: the workers that are being made ready to take over, or None.
        detokenizer: what SGLang puts between the workers and itself, once it runs.
    """

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
        self.partition = partition
        self._generations = 0
        self.residents: tuple[Worker, ...] = ()
        self.pair = WorkerPair(0, ())
        self.standby: WorkerPair | None = None
        self.detokenizer: BaseProcess | None = None

    def start(self, allocation: SMAllocation) -> None:
        """Start every process; see ``wait_ready`` for when they serve.

        Raises:
            WorkerStartError: the host does not let one start; ``stop`` ends the others.
        """
        residents: list[Worker] = []
        try:
            self._launch(InstanceRole.RESIDENT, allocation, 0, started=residents)
        finally:
            self.residents = tuple(residents)
        self.pair = self.launch_pair(allocation)

    def launch_pair(
        self, allocation: SMAllocation, *, is_standby: bool = False
    ) -> WorkerPair:
        """Start the workers of the next generation.

        Raises:
            WorkerStartError: the host does not let one start; none is left then.
        """
        self._generations += 1
        generation = self._generations
        workers: list[Worker] = []
        try:
            for role in PAIR:
                self._launch(
                    role,
                    allocation,
                    generation,
                    started=workers,
                    is_standby=is_standby,
                )
        except BaseException:
            WorkerPair(generation, tuple(workers)).kill()
            raise
        return WorkerPair(generation, tuple(workers))

    def wait_ready(self) -> dict[InstanceRole, dict[str, Any]]:
        """Block until every process is ready; returns what rank 0 of each role said.

        Raises:
            WorkerStartError: one ended before it was ready.
        """
        return wait_ready(self.workers)

    @property
    def workers(self) -> list[Worker]:
        """All processes, residents first."""
        standby = self.standby.workers if self.standby else ()
        return [*self.serving, *standby]

    @property
    def serving(self) -> list[Worker]:
        """All processes but those of a standby."""
        return [*self.residents, *self.pair.workers]

    def of_role(self, role: InstanceRole) -> list[Worker]:
        """The processes of one role that serve, by rank."""
        return [worker for worker in self.serving if worker.spec.role is role]

    def stop(self) -> None:
        """End every process; when it returns, all have been joined."""
        deadline = time.monotonic() + STOP_TIMEOUT_S
        workers = [worker for worker in self.workers if not worker.is_closed]
        for worker in workers:
            worker.tell_to_end()
        for worker in workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                logger.warning("%s did not end; killing it", worker.spec.title)
                worker.process.kill()
            worker.close()
        if self.detokenizer is not None:
            self.detokenizer.kill()
            self.detokenizer.join()

    def kill(self) -> None:
        """End every process at once; does not wait until they are gone."""
        processes = [worker.process for worker in self.workers if not worker.is_closed]
        for process in [*processes, *filter(None, [self.detokenizer])]:
            process.kill()

    def _launch(
        self,
        role: InstanceRole,
        allocation: SMAllocation,
        generation: int,
        *,
        started: list[Worker],
        is_standby: bool = False,
    ) -> None:
        """Start a process for each rank and add it to ``started``, which has those that
        run if one cannot be started."""
        try:
            port_args = self._ports(role, generation)
            for rank in range(self._server_args.tp_size):
                spec = self._spec(role, rank, allocation, generation, port_args)
                spec = dataclasses.replace(spec, is_standby=is_standby)
                process, ready = fork_server.launch(
                    worker_process.run,
                    spec,
                    name=spec.title,
                    method=self._server_args.worker_start_method,
                    environment=spec.environment,
                )
                started.append(Worker(spec, process, ready))
        except (OSError, ConfigError) as error:
            raise WorkerStartError(
                "A process cannot be started",
                why=str(error),
                mend="see the limits of processes, open files and ports of this host",
            ) from error

    def _spec(
        self,
        role: InstanceRole,
        rank: int,
        allocation: SMAllocation,
        generation: int,
        port_args: PortArgs,
    ) -> WorkerSpec:
        args = self._server_args
        is_green = self.partition.name == "green" and args.device == "cuda"
        changes_sms = is_green and role.is_worker
        percentage = allocation.percentage_of(role) if role.is_worker else 100
        return WorkerSpec(
            role=role,
            generation=generation,
            server_args=role_server_args(args, role, percentage),
            port_args=port_args,
            gpu_id=args.base_gpu_id + rank * args.gpu_id_step,
            tp_rank=rank,
            moe_ep_rank=rank // (args.tp_size // args.ep_size),
            run_directory=self._run_directory,
            environment={
                **os.environ,
                **self.partition.environment(role, allocation),
            },
            percentage=percentage,
            pool_bytes=SemiPDConfig.from_server_args(args).pool_bytes,
            has_prefix_cache=not args.disable_radix_cache,
            cores=self.partition.cores(role, allocation),
            split=allocation if changes_sms else None,
        )

    def _ports(self, role: InstanceRole, generation: int) -> PortArgs:
        """Where the ranks of a role meet, and their input: SGLang's own address for
        the first prefill worker."""
        meeting = dataclasses.replace(self._port_args, nccl_port=ports.undisturbed())
        if role is InstanceRole.PREFILL and generation == 1:
            return meeting
        address = input_address(self._run_directory, role, generation)
        return dataclasses.replace(meeting, scheduler_input_ipc_name=address)


def role_server_args(
    server_args: ServerArgs, role: InstanceRole, percentage: int
) -> ServerArgs:
    """Resolve the user's arguments again, for one role.

    Seeds are drawn at resolution, so they are taken from what the main process got.

    Args:
        percentage: of the SMs, that the worker begins with.
    """
    changes: dict[str, Any] = {
        "random_seed": server_args.random_seed,
        "enable_unified_memory": False,
    }
    if role is InstanceRole.PREFILL:
        changes |= _prefill_graphs(server_args, percentage)
    else:
        # Prefill owns the prefix cache; there is one address to publish its events on.
        changes |= {"disable_radix_cache": True, "kv_events_config": None}
    if role.is_worker:
        changes["disaggregation_mode"] = role.value
        # The backend with the fewest side effects; its classes are never used.
        changes["disaggregation_transfer_backend"] = "nixl"
    return for_role(server_args, role.value, **changes)


def _prefill_graphs(server_args: ServerArgs, percentage: int) -> dict[str, Any]:
    given = server_args._semi_pd_raw_fields
    if any(given[field] is not None for field in PREFILL_GRAPH_FIELDS):
        return {}
    # As upstream bounds its own choice: by a chunk, and by the pool.
    bounds = server_args.chunked_prefill_size, server_args.max_total_tokens
    given_bounds = [bound for bound in bounds if bound is not None and bound > 0]
    of_share = PREFILL_GRAPH_LONGEST * server_args.tp_size * percentage // 100
    of_share = max(size for size in PREFILL_GRAPH_TOKENS if size <= of_share)
    most = min([of_share, *given_bounds])
    sizes = [size for size in PREFILL_GRAPH_TOKENS if size < most]
    return {
        "cuda_graph_max_bs_prefill": most,
        "cuda_graph_bs_prefill": [*sizes, most],
    }
