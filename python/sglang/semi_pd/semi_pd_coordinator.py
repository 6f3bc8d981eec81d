# SPDX-License-Identifier: Apache-2.0
"""The coordinator: owns one instance's processes and answers for their state.

Lives in the main process. In a server SGLang's own launch calls it through the hooks of
``main_process``; from Python it is a context manager that starts the same server.
"""

from __future__ import annotations

import logging
import os
import shutil
from concurrent.futures import Future
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglang.semi_pd.config import SemiPDConfig, resolve
from sglang.semi_pd.errors import SemiPDError
from sglang.semi_pd.memory.block_table import AuditReport, BlockTable
from sglang.semi_pd.metrics_aggregator import MetricsAggregator
from sglang.semi_pd.monitoring.history import History
from sglang.semi_pd.monitoring.instance_view import InstanceView
from sglang.semi_pd.partition.cpu_share import CoreSplit
from sglang.semi_pd.partition.fixed_split import FixedSplit, SplitBeforeStart
from sglang.semi_pd.partition.green_split import GreenSplit
from sglang.semi_pd.partition.realised_share import (
    CoreMeter,
    ProbeMeter,
    RealisedShare,
    ShareMeter,
)
from sglang.semi_pd.partition.sm_partition import (
    NoPartition,
    SMPartition,
    start_partition,
)
from sglang.semi_pd.process_rotation_manager import (
    ProcessRotationManager,
    SplitMechanism,
)
from sglang.semi_pd.resident.resident_channel import AttachRequest, attach
from sglang.semi_pd.server import (
    fork_server,
    main_process,
    memory_usage,
    run_directory,
)
from sglang.semi_pd.server.http_thread import ServerThread
from sglang.semi_pd.server.readiness import Readiness
from sglang.semi_pd.server.rotation import Rotation, SplitByRotation
from sglang.semi_pd.server.slo_service import SLOService
from sglang.semi_pd.server.supervisor import Supervisor
from sglang.semi_pd.server.switchboard import Switchboard
from sglang.semi_pd.server.worker_group import WorkerGroup
from sglang.semi_pd.sm_allocation import SMAllocation
from sglang.semi_pd.utils import InstanceRole
from sglang.semi_pd.workers.messages import HasLeft
from sglang.semi_pd.workers.worker_spec import load_snapshot_path
from typing_extensions import Self

if TYPE_CHECKING:
    from sglang.semi_pd.server.instance_load import InstanceLoadReader
    from sglang.srt.managers.tokenizer_manager import TokenizerManager
    from sglang.srt.server_args import PortArgs, SemiPDPortArgs, ServerArgs

logger = logging.getLogger(__name__)

EXIT_GAVE_UP = 1


class SemiPDCoordinator:
    """One Semi-PD instance.

    Args:
        server_args: as for a server; filled by attribute or resolved.
    """

    def __init__(self, server_args: ServerArgs) -> None:
        # From this thread, which outlives the server's: see ``fork_server.start``.
        fork_server.start()
        self.server_args = resolve(server_args)
        self.config = SemiPDConfig.from_server_args(self.server_args)
        self.run_directory = run_directory.create()
        self.rotation = ProcessRotationManager(
            SplitBeforeStart(can_move=self._will_move()),
            SMAllocation(self.config.prefill_percent, self.config.decode_percent),
            allow_overlap=self.config.overlap_allowed,
        )
        self.readiness = Readiness()
        self.slo = SLOService(self.config, self.rotation)
        self.history = History(self._observe)
        self.loads: InstanceLoadReader | None = None
        self._partition: SMPartition = NoPartition()
        self._group: WorkerGroup | None = None
        self._supervisor: Supervisor | None = None
        self._table: BlockTable | None = None
        self._realised: RealisedShare | None = None
        self._server: ServerThread | None = None
        self._is_running = False
        self.detokenizer: BaseProcess | None = None

    # From Python

    def start(self) -> None:
        """Serve on ``server_args``' host and port; returns when requests are accepted.

        Raises:
            WorkerStartError: the server ended instead.
        """
        main_process.use(self)
        self._server = ServerThread(self.server_args)
        self._server.start()

    def stop(self) -> None:
        """Stop serving and end every process; when it returns all are joined."""
        if self._server is not None:
            self._server.stop()
            self._server = None
        self.end_processes()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # From SGLang's launch

    def start_processes(self, port_args: PortArgs) -> WorkerGroup:
        """Start resident, prefill and decode of every rank."""
        args = self.server_args
        self._partition = start_partition(
            self.config.partition_backend,
            args.device,
            self.run_directory,
            args.base_gpu_id,
        )
        self.rotation.begin_with(
            self._partition.initial_split(
                self.rotation.current_allocation,
                is_free=self.config.split_is_free,
                allow_overlap=self.config.overlap_allowed,
            )
        )
        self.rotation.use(self._split_mechanism())
        self._realised = RealisedShare(self._share_meter())
        self._group = WorkerGroup(args, port_args, self.run_directory, self._partition)
        self._group.start(self.rotation.current_allocation)
        return self._group

    def wait_ready(self) -> dict[InstanceRole, dict[str, Any]]:
        """Block until every process is ready; returns what each role's rank 0 said.

        Raises:
            WorkerStartError: a process ended instead.
        """
        assert self._group is not None, "start_processes comes first"
        try:
            said = self._group.wait_ready()
            self._partition.verify(self._worker_pids())
        except SemiPDError as error:
            logger.error("Failed to initialize Semi-PD Coordinator: %s", error)
            self.end_processes()
            raise
        self._table = self._attach_table()
        self._supervise()
        self._is_running = True
        self.slo.start()
        self.history.start()
        return said

    def end_processes(self) -> None:
        """End every process and remove what the instance kept on disk."""
        self._is_running = False
        self.history.stop()
        self.slo.stop()
        if self._supervisor is not None:
            self._supervisor.stop()
            self._supervisor = None
        if self._group is not None:
            self._group.stop()
            self._group = None
        if self.detokenizer is not None:
            self.detokenizer.kill()
            self.detokenizer.join()
            self.detokenizer = None
        self._partition.stop()
        self._partition = NoPartition()
        shutil.rmtree(self.run_directory, ignore_errors=True)

    def load_snapshot_path(self, role: InstanceRole) -> str:
        """The file in which a worker tells the main process its load."""
        return load_snapshot_path(self.run_directory, role)

    def connect(self, manager: TokenizerManager, port_args: PortArgs) -> None:
        """Lead the messages of SGLang's TokenizerManager to the workers."""
        self.switchboard = Switchboard(
            manager, port_args, self.run_directory, self._has_left
        )

    @property
    def metrics_aggregator(self) -> MetricsAggregator:
        """What clients see and what the workers report, in one view."""
        return self.slo.aggregator

    def request_sm_reallocation(self, allocation: SMAllocation) -> bool:
        """Move the split while serving; False leaves the old one in force.

        Raises:
            ConfigError: the shares sum to more than 100 where they may not.
        """
        return self.rotation.request_sm_reallocation(allocation)

    # State

    def get_status(self) -> dict[str, Any]:
        """Everything an operator may ask, as plain values."""
        usage = self.get_unified_memory_usage()
        realised = self._realised
        return {
            "is_running": self._is_running,
            "readiness": self.readiness.as_status(),
            "components": self._components(),
            "partition_backend": self._partition.name,
            "realised_sm_share": realised.get_status() if realised else None,
            "process_rotation_status": {
                **self.rotation.get_status(),
                "realised_sm_allocation": realised and realised.as_allocation(),
                "generation": self._group.pair.generation if self._group else 0,
            },
            "recovery_status": self._recovery_status(),
            "unified_memory_status": {"memory_usage": usage},
            "slo_controller_status": self.slo.get_status(),
            "metrics": self.metrics_aggregator.get_aggregated_metrics(),
        }

    def _observe(self) -> InstanceView:
        """For the history; brings in what the workers say of their queues."""
        queues = self.loads.queue_lengths() if self.loads else {}
        for role, length in queues.items():
            self.metrics_aggregator.set_worker_metrics(role, {"queue_length": length})
        return InstanceView.from_status(self.get_status())

    def get_unified_memory_usage(self) -> dict[str, Any] | None:
        """KV memory: total, allocated, and who has it; None before the start."""
        if self._table is None:
            return None
        return memory_usage.describe(self._table.usage(), self._block_bytes)

    def audit_unified_memory(self) -> AuditReport | None:
        """Check every page and row now and log violations; None before the start."""
        if self._table is None:
            return None
        report = self._table.audit()
        for violation in report.violations:
            logger.error("Memory audit: %s", violation)
        return report

    def _will_move(self) -> bool:
        """Whether the split moves, should the backend turn out to be the best one."""
        return self.config.partition_backend != "none"

    def _split_mechanism(self) -> SplitMechanism:
        if self._partition.name == "none":
            return FixedSplit("nothing is divided", "use another partition backend")
        if self._partition.name == "mps":
            return SplitByRotation(self._rotate)
        if self.server_args.device == "cpu":
            return CoreSplit(self._send, self._pids)
        return GreenSplit(
            self._send,
            self._share_paths,
            lambda: self.rotation.current_allocation,
        )

    def _supervise(self) -> None:
        assert self._group is not None
        self._supervisor = Supervisor(
            self._group,
            self.switchboard,
            allocation=lambda: self.rotation.current_allocation,
            hang_timeout_s=self.config.worker_hang_timeout_s,
            give_up=self._give_up,
        )
        self._supervisor.start()

    def _rotate(self, allocation: SMAllocation) -> Future[Rotation]:
        assert self._supervisor is not None, "the server does not serve yet"
        return self._supervisor.rotate(allocation)

    def _has_left(self, message: HasLeft) -> None:
        if self._supervisor is not None:
            self._supervisor.has_left(message)

    def _send(self, role: InstanceRole, message: Any) -> None:
        self.switchboard.send(role, message)

    def _give_up(self, error: SemiPDError) -> None:
        """The instance cannot go on: end all of it, with one line."""
        logger.critical("Semi-PD ends. %s", error)
        assert self._group is not None
        for worker in self._group.workers:
            worker.process.kill()
        if self.detokenizer is not None:
            self.detokenizer.kill()
        self._partition.stop()
        shutil.rmtree(self.run_directory, ignore_errors=True)
        logging.shutdown()
        os._exit(EXIT_GAVE_UP)

    def _recovery_status(self) -> dict[str, Any]:
        supervisor = self._supervisor
        if supervisor is None:
            return {"is_recovering": False, "worker_deaths": 0}
        return {
            "is_recovering": supervisor.is_recovering,
            "worker_deaths": supervisor.deaths,
            "last_death": supervisor.last_death,
            "last_death_at": supervisor.last_death_at,
            "last_recovery_s": supervisor.last_recovery_s,
        }

    def _share_meter(self) -> ShareMeter:
        if self.server_args.device == "cpu":
            return CoreMeter(self._pids, len(os.sched_getaffinity(0)))
        return ProbeMeter(self._share_paths, self._sms_of_device)

    def _sms_of_device(self) -> int:
        import torch

        gpu = self.server_args.base_gpu_id
        return torch.cuda.get_device_properties(gpu).multi_processor_count

    def _share_paths(self, role: InstanceRole) -> list[Path]:
        workers = self._group.of_role(role) if self._group else ()
        return [worker.spec.share_path for worker in workers]

    def _worker_pids(self) -> list[int]:
        roles = [role for role in InstanceRole if role.is_worker]
        return [pid for role in roles for pid in self._pids(role)]

    def _pids(self, role: InstanceRole) -> list[int]:
        workers = self._group.of_role(role) if self._group else ()
        return [worker.pid for worker in workers]

    def _components(self) -> dict[str, Any]:
        workers = self._group.workers if self._group else []
        return {
            f"{worker.spec.role.value}_TP{worker.spec.tp_rank}": {
                "pid": worker.pid,
                "generation": worker.spec.generation,
                "is_alive": not worker.has_ended,
            }
            for worker in workers
        }

    def _attach_table(self) -> BlockTable:
        assert self._group is not None
        resident = self._group.residents[0]
        request = AttachRequest(InstanceRole.RESIDENT, 0)
        manifest, fds = attach(resident.spec.resident_socket, request, timeout_s=30)
        table = BlockTable.attach(fds[0])
        for fd in fds:
            os.close(fd)
        self._block_bytes = sum(ref.extent for ref in manifest.kv_buffers) // (
            table.layout.num_pages + 1
        )
        return table


def create_semi_pd_coordinator(
    *, server_args: ServerArgs, port_args: SemiPDPortArgs | None = None
) -> SemiPDCoordinator:
    """A coordinator that is not started yet; ``port_args`` says where it will serve.

    Raises:
        ConfigError: a flag cannot be served.
    """
    if port_args is not None:
        server_args.host, server_args.port = port_args.host, port_args.port
    return SemiPDCoordinator(server_args)
