# SPDX-License-Identifier: Apache-2.0
"""Which kernels go first where several processes share an SM.

An SM that has room takes a block of the stream with the highest priority, of whichever
process. Decode goes first: every stream waits for it, and its kernels are short. Then
what prefill serves; last, at torch's default, what a standby only prepares.

MPS has a priority of its own for clients, CUDA_MPS_CLIENT_PRIORITY. On an H200 (driver
580) it changed nothing (``test/semi_pd/gpu/test_stream_priority.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from sglang.semi_pd.utils import InstanceRole
from sglang.semi_pd.workers import graph_sizes
from sglang.semi_pd.workers.warm_ups import WarmUps

if TYPE_CHECKING:
    from sglang.semi_pd.workers.worker_scheduler import WorkerScheduler

PRIORITY = {InstanceRole.PREFILL: -1, InstanceRole.DECODE: -3}
"""Of a worker's forwards, as CUDA counts: 0 is the lowest, torch's highest is -3."""

PREPARING = {InstanceRole.PREFILL: -2, InstanceRole.DECODE: -3}
"""Of what prepares them. At a lower priority than prefill's forwards, decode's would
wait for all of a long prompt; and prefill's own go before the products of the forward
that runs: a successor's prefix cache is put together by many small ones."""

_BACKENDS = "sglang.srt.model_executor.runner_backend"
_CAPTURE = "sglang.srt.distributed.parallel_state.graph_capture"
_EVENT_LOOP = "sglang.srt.managers.scheduler.dispatch_event_loop"
CAPTURED = (
    f"{_BACKENDS}.full_cuda_graph_backend.FullCudaGraphBackend",
    f"{_BACKENDS}.breakable_cuda_graph_backend.BreakableCudaGraphBackend",
)


def run_on(scheduler: WorkerScheduler, stream: torch.cuda.Stream) -> None:
    """The model runs on ``stream`` from the next batch on.

    It waits, on the device, for what the present one has queued. So all forwards stay
    in one order, and memory that a stream has freed is never reused before its last
    reader has finished.
    """
    stream.wait_event(scheduler.forward_stream.record_event())
    scheduler.forward_stream = stream
    scheduler.forward_stream_ctx = torch.cuda.stream(stream)
    scheduler.tp_worker.model_runner.forward_stream = stream
    scheduler.token_to_kv_pool_allocator.forward_stream = stream


def event_loop_hook(role: InstanceRole) -> dict[str, Callable[..., Any]]:
    """What prepares a batch goes no later than batches do."""

    def dispatch(original: Callable[..., None], scheduler: WorkerScheduler) -> None:
        stream = torch.cuda.Stream(priority=PREPARING[role])
        scheduler.schedule_stream = stream
        with torch.cuda.stream(stream):
            original(scheduler)

    return {_EVENT_LOOP: dispatch}


class ServingStream:
    """The stream of one worker's forwards, of its graphs, and what prepares them.

    A kernel in a graph has the priority of the stream that it was captured on.

    Attributes:
        sms: those that this process sees.
    """

    def __init__(self, role: InstanceRole, device: torch.device) -> None:
        self.sms: int = torch.cuda.get_device_properties(device).multi_processor_count
        self._role = role
        self._stream = torch.cuda.Stream(device, priority=PRIORITY[role])
        self._low = torch.cuda.Stream(device)
        self._model: torch.nn.Module | None = None

    def hooks(self) -> dict[str, Callable[..., Any]]:
        """What wraps SGLang's capture, by dotted name."""
        backends = {f"{name}.capture_one": self._capture_one for name in CAPTURED}
        loop = event_loop_hook(self._role)
        runners = (graph_sizes.DECODE_RUNNER, graph_sizes.PREFILL_RUNNER)
        captures = {f"{name}.capture": self._capture for name in runners}
        return {_CAPTURE: self._on_serving, **captures, **backends, **loop}

    def attach(self, scheduler: WorkerScheduler) -> None:
        """From now on the model runs at this priority."""
        if scheduler.enable_overlap:  # otherwise there is no stream of its own
            run_on(scheduler, self._stream)

    def _capture(self, original: Callable[..., None], runner: Any) -> None:
        self._model = runner.model_runner.model
        if self._role is InstanceRole.DECODE:
            graph_sizes.leave_out_near(runner)
        original(runner)

    def _on_serving(
        self, original: Callable[..., AbstractContextManager[Any]], stream: Any = None
    ) -> AbstractContextManager[Any]:
        return original(stream=stream or self._stream)

    def _capture_one(
        self,
        original: Callable[..., None],
        backend: Any,
        shape_key: Any,
        forward_fn: Callable[[], Any],
        **others: Any,
    ) -> None:
        is_first = not backend._graphs
        forward = WarmUps(forward_fn, self._model, self._low, is_first=is_first)
        original(backend, shape_key, forward, **others)
