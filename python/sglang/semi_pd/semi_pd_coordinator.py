# SPDX-License-Identifier: Apache-2.0
"""The coordinator: owns one instance's processes and answers for their state.

Lives in the main process. In a server SGLang's own launch calls it through the hooks of
``main_process``; from Python it is a context manager that starts the same server.
"""

from __future__ import annotations

import logging
import os
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglang.semi_pd.config import SemiPDConfig, resolve
from sglang.semi_pd.errors import SemiPDError
from sglang.semi_pd.metrics_aggregator import MetricsAggregator
from sglang.semi_pd.monitoring.history import History
from sglang.semi_pd.partition import green_needs
from sglang.semi_pd.partition.fixed_split import SplitBeforeStart
from sglang.semi_pd.partition.realised_share import RealisedShare
from sglang.semi_pd.partition.sm_partition import (
    NoPartition,
    SMPartition,
    start_partition,
)
from sglang.semi_pd.process_rotation_manager import ProcessRotationManager
from sglang.semi_pd.server import (
    fork_server,
    http_thread,
    instance_status,
    run_directory,
)
from sglang.semi_pd.server.memory_reader import MemoryReader
from sglang.semi_pd.server.readiness import Readiness
from sglang.semi_pd.server.rotation import Rotation
from sglang.semi_pd.server.slo_service import SLOService
from sglang.semi_pd.server.split_parts import (
    WorkerReach,
    share_meter,
    split_mechanism,
)
from sglang.semi_pd.server.supervisor import Patience, Supervisor
from sglang.semi_pd.server.switchboard import Switchboard, SwitchNews
from sglang.semi_pd.server.worker_group import WorkerGroup
from sglang.semi_pd.sm_allocation import SMAllocation
from sglang.semi_pd.utils import InstanceRole
from sglang.semi_pd.workers.worker_spec import load_snapshot_path
from typing_extensions import Self

if TYPE_CHECKING:
    from sglang.semi_pd.memory.block_table import AuditReport
    from sglang.semi_pd.server.instance_load import InstanceLoadReader
    from sglang.srt.managers.tokenizer_manager import TokenizerManager
    from sglang.srt.server_args import PortArgs, SemiPDPortArgs, ServerArgs

logger = logging.getLogger(__name__)

EXIT_GAVE_UP = 1


class SemiPDCoordinator:
    """One Semi-PD instance.

    Args:
        server_args: as for a server; filled by attribute or resolved.

    Attributes:
        is_running: from when every process is ready until the end begins.
        partition, group, supervisor, realised, memory: its parts, of which all but the
            partition are None before the start.
    """

    def __init__(self, server_args: ServerArgs) -> None:
        # From this thread, which outlives the server's: see ``fork_server.start``.
        if server_args.worker_start_method == "spawn":
            fork_server.kill()  # started early, if a file of options asks to spawn
        else:
            fork_server.start()
        self.server_args = resolve(server_args)
        self.config = SemiPDConfig.from_server_args(self.server_args)
        self.rotation = ProcessRotationManager(
            SplitBeforeStart(can_move=self.config.partition_backend != "none"),
            SMAllocation(self.config.prefill_percent, self.config.decode_percent),
            allow_overlap=self.config.overlap_allowed,
        )
        self.readiness = Readiness()
        self.slo = SLOService(self.config, self.rotation)
        self.history = History(lambda: instance_status.observe(self))
        self.loads: InstanceLoadReader | None = None
        self.partition: SMPartition = NoPartition()
        self.group: WorkerGroup | None = None
        self.supervisor: Supervisor | None = None
        self.memory: MemoryReader | None = None
        self.realised: RealisedShare | None = None
        self._server: http_thread.ServerThread | None = None
        self.is_running = False
        self.run_directory = run_directory.create()  # last: nothing after it may fail

    # From Python

    def start(self) -> None:
        """Serve on ``server_args``' host and port; returns when requests are accepted.

        Once in a process. After an error nothing of it runs any more.

        Raises:
            WorkerStartError: the server ended instead, or is not the first.
        """
        self._server = http_thread.serve(self)

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
        self.partition = start_partition(
            self.config.partition_backend,
            args.device,
            self.run_directory,
            gpu=args.base_gpu_id,
            green_refused=green_needs.why_not(args),
        )
        self.rotation.begin_with(
            self.partition.initial_split(
                self.rotation.current_allocation,
                is_free=self.config.split_is_free,
                allow_overlap=self.config.overlap_allowed,
            )
        )
        reach = WorkerReach(self._send, self._pids, self._share_paths, self._rotate)
        self.rotation.use(
            split_mechanism(
                self.partition,
                self.config,
                args.device,
                reach,
                lambda: self.rotation.current_allocation,
            )
        )
        self.realised = RealisedShare(share_meter(args, reach))
        self.group = WorkerGroup(args, port_args, self.run_directory, self.partition)
        self.group.start(self.rotation.current_allocation)
        return self.group

    def wait_ready(self) -> dict[InstanceRole, dict[str, Any]]:
        """Block until every process is ready; returns what each role's rank 0 said.

        Raises:
            WorkerStartError: a process ended instead; ``end_processes`` ends the rest.
        """
        assert self.group is not None, "start_processes comes first"
        said = self.group.wait_ready()
        self.partition.verify([worker.pid for worker in self.group.pair.workers])
        resident = self.group.residents[0]
        self.memory = MemoryReader.of_resident(resident.spec.resident_socket)
        if self.realised is not None:
            self.realised.log_given(self.rotation.current_allocation)
        self._supervise()
        self.is_running = True
        self.slo.start()
        self.history.start()
        return said

    def end_processes(self) -> None:
        """End every process and remove what the instance kept on disk.

        May be called at any time, more than once.
        """
        self.is_running = False
        partition, self.partition = self.partition, NoPartition()
        supervisor, self.supervisor = self.supervisor, None
        group, self.group = self.group, None
        with ExitStack() as last_first:  # each, even if one before it fails
            last_first.callback(run_directory.remove, self.run_directory)
            last_first.callback(partition.stop)
            if group is not None:
                last_first.callback(group.stop)
            last_first.callback(self.slo.stop)
            if supervisor is not None:  # the controller may be waiting for it
                last_first.callback(supervisor.stop)
            last_first.callback(self.history.stop)

    def end_moves(self) -> None:
        """The server drains: a move of the split that has not happened does not."""
        if self.supervisor is not None:
            self.supervisor.end_moves()

    def load_snapshot_path(self, role: InstanceRole) -> str:
        """The file in which a worker tells the main process its load."""
        return load_snapshot_path(self.run_directory, role)

    def connect(self, manager: TokenizerManager, port_args: PortArgs) -> None:
        """Lead the messages of SGLang's TokenizerManager to the workers."""
        self.switchboard = Switchboard(
            manager, port_args, self.run_directory, self._hear, self._free_pages
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
        return instance_status.describe(self)

    def get_unified_memory_usage(self) -> dict[str, Any] | None:
        """KV memory: total, allocated, and who has it; None before the start."""
        return self.memory.usage() if self.memory else None

    def audit_unified_memory(self) -> AuditReport | None:
        """Check every page and row now and log violations; None before the start."""
        return self.memory.audit() if self.memory else None

    def _supervise(self) -> None:
        assert self.group is not None
        self.supervisor = Supervisor(
            self.group,
            self.switchboard,
            allocation=lambda: self.rotation.current_allocation,
            patience=Patience(
                self.config.worker_hang_timeout_s, self.config.standby_timeout_s
            ),
            give_up=self._give_up,
        )
        self.supervisor.start()

    def _rotate(self, allocation: SMAllocation) -> Future[Rotation]:
        assert self.supervisor is not None, "the server does not serve yet"
        return self.supervisor.rotate(allocation)

    def _hear(self, message: SwitchNews) -> None:
        if self.supervisor is not None:
            self.supervisor.hear(message)

    def _free_pages(self) -> int:
        return self.memory.pages_free if self.memory else 0

    def _send(self, role: InstanceRole, message: Any) -> None:
        self.switchboard.send(role, message)

    def _give_up(self, error: SemiPDError) -> None:
        """The instance cannot go on: end all of it, with one line."""
        logger.critical("Semi-PD ends. %s", error)
        assert self.group is not None
        self.group.kill()
        self.partition.stop()
        run_directory.remove(self.run_directory)
        logging.shutdown()
        os._exit(EXIT_GAVE_UP)

    def _share_paths(self, role: InstanceRole) -> list[Path]:
        workers = self.group.of_role(role) if self.group else ()
        return [worker.spec.share_path for worker in workers]

    def _pids(self, role: InstanceRole) -> list[int]:
        workers = self.group.of_role(role) if self.group else ()
        return [worker.pid for worker in workers]


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
