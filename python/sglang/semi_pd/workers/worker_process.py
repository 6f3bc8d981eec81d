# SPDX-License-Identifier: Apache-2.0
"""Entry of every process that the fork server makes."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

import setproctitle
import torch
from sglang.semi_pd.launch.start_progress import Failure, Phase
from sglang.semi_pd.partition.cpu_share import take_cores
from sglang.semi_pd.utils import InstanceRole
from sglang.semi_pd.workers import numerics_gate, standstill
from sglang.semi_pd.workers.worker_spec import EXIT_FAILED, WorkerSpec

if TYPE_CHECKING:
    from sglang.semi_pd.workers.green_forward import GreenForward
    from sglang.semi_pd.workers.stream_priority import ServingStream
    from sglang.semi_pd.workers.worker_scheduler import WorkerScheduler


def run(spec: WorkerSpec, ready: Connection) -> None:
    """Be the process ``spec`` describes, until told to end.

    Leaves with exit code 0 when it was asked to end, otherwise with 1.
    """
    # First: it finds its place through the environment that the process began with.
    setproctitle.setproctitle(spec.title)
    _take_environment(spec)
    body = _run_resident if spec.role is InstanceRole.RESIDENT else _run_scheduler
    try:
        body(spec, ready)
    except Exception as error:
        _tell(error, spec, ready)
        raise


def _tell(error: Exception, spec: WorkerSpec, ready: Connection) -> None:
    """The main process hears why the start failed, and says it once for all processes.

    Ends this one without a traceback, unless that is asked for: then it returns.
    """
    with suppress(OSError):  # nobody listens any more
        ready.send(Failure.of(error))
    if spec.server_args.log_level != "debug":
        sys.exit(EXIT_FAILED)


def _run_resident(spec: WorkerSpec, ready: Connection) -> None:
    from sglang.semi_pd.resident.resident_worker import serve
    from sglang.srt.utils import configure_logger, kill_itself_when_parent_died

    kill_itself_when_parent_died()
    configure_logger(spec.server_args, prefix=" R")
    serve(spec, ready)


def _run_scheduler(spec: WorkerSpec, ready: Connection) -> None:
    from sglang.semi_pd.workers.resident_memory import ResidentMemory
    from sglang.semi_pd.workers.upstream_hooks import install_worker
    from sglang.srt.managers import scheduler as upstream

    standstill.tell_on_signal()
    scheduler_class = _scheduler_class(spec.role)
    device = torch.device(spec.device)
    forwards = _enter_gpu(spec, device) if device.type == "cuda" else None
    ready.send(Phase("waiting for the resident's memory"))
    memory = ResidentMemory.attach(
        spec.resident_socket,
        role=spec.role,
        generation=spec.generation,
        device=device,
    )
    ready.send(Phase("attached; building the model over it"))
    scheduler_class.spec, scheduler_class.memory = spec, memory
    scheduler_class.forwards = forwards
    scheduler_class.enter = lambda doing: ready.send(Phase(doing))
    scheduler_class.fail = lambda error: _tell(error, spec, ready)
    install_worker(memory, scheduler_class)
    upstream.run_scheduler_process(
        spec.server_args,
        spec.port_args,
        spec.gpu_id,
        spec.tp_rank,
        0,  # attention context-parallel rank
        0,  # MoE data-parallel rank
        spec.moe_ep_rank,
        0,  # pipeline rank
        None,  # data-parallel rank
        ready,
    )
    # Upstream logs an exception of its scheduler, if it sees one, and returns.
    sys.exit(EXIT_FAILED)


def _enter_gpu(spec: WorkerSpec, device: torch.device) -> GreenForward | ServingStream:
    """Make sure that this share of the GPU computes right; where the model is to run.

    Raises:
        NumericsError: it does not.
        GreenContextError: green contexts were asked for and cannot be had.
    """
    if spec.split is None:
        from sglang.semi_pd.workers.stream_priority import ServingStream

        numerics_gate.check(device, spec.percentage)
        return ServingStream(spec.role, device)
    from sglang.semi_pd.workers.green_forward import GreenForward

    green = GreenForward(spec)
    green.check_numerics()
    return green


def _scheduler_class(role: InstanceRole) -> type[WorkerScheduler]:
    if role is InstanceRole.PREFILL:
        from sglang.semi_pd.workers.prefill_scheduler import PrefillScheduler

        return PrefillScheduler
    from sglang.semi_pd.workers.decode_scheduler import DecodeScheduler

    return DecodeScheduler


def _take_environment(spec: WorkerSpec) -> None:
    """The fork server was started early, with the environment of that time."""
    os.environ.clear()
    os.environ.update(spec.environment)
    if spec.cores:
        take_cores(spec.cores)
    _reread_prometheus_environment()


def _reread_prometheus_environment() -> None:
    # prometheus_client chooses between one and several processes when imported.
    from prometheus_client import values

    values.ValueClass = values.get_value_class()
