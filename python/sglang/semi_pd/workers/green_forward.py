# SPDX-License-Identifier: Apache-2.0
"""A worker's forward stream as one of several green streams, changed between batches.

SGLang's scheduler runs the model on ``forward_stream`` and everything else on streams
of its own; only that one decides on which SMs the model runs, so only that one is
replaced.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from sglang.semi_pd.partition.green_context import GreenContextError, GreenDevice
from sglang.semi_pd.partition.sm_ranges import SMRange
from sglang.semi_pd.workers import numerics_gate
from sglang.semi_pd.workers.green_graphs import GraphSets
from sglang.semi_pd.workers.stream_priority import PRIORITY, event_loop_hook, run_on

if TYPE_CHECKING:
    from sglang.semi_pd.sm_allocation import SMAllocation
    from sglang.semi_pd.workers.worker_scheduler import WorkerScheduler
    from sglang.semi_pd.workers.worker_spec import WorkerSpec

logger = logging.getLogger(__name__)

CACHE_SHARE = 0.45
"""Of the memory that is free when a worker is built; the other worker takes as much."""


class GreenForward:
    """The streams of one worker, and the one in use.

    Raises:
        GreenContextError: green contexts cannot be used on this device.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        assert spec.split is not None, "this worker's share is fixed"
        device = torch.device(spec.device)
        torch.cuda.set_device(device)
        torch.cuda.synchronize()  # the primary context is active from here on
        self._role = spec.role
        self._green = GreenDevice(device, PRIORITY[spec.role])
        began = time.monotonic()
        self._streams = {
            units: self._green.stream(units)
            for units in self._green.units.ranges(spec.role)
        }
        self._units = self._green.units.range_of(spec.role, spec.split)
        self._graphs = GraphSets(self._streams, self._units)
        logger.info(
            "%d green streams in %.0f ms, SMs in units of %s",
            len(self._streams),
            1e3 * (time.monotonic() - began),
            self._green.units.sizes,
        )

    def hooks(self) -> dict[str, Callable[..., Any]]:
        """What wraps SGLang's capture, by dotted name."""
        return {**self._graphs.hooks(), **event_loop_hook(self._role)}

    @property
    def sms(self) -> int:
        """SMs of the present split."""
        return self._green.units.count(self._units)

    def check_numerics(self) -> None:
        """Compare products on every stream with right ones.

        Raises:
            NumericsError: one of them is wrong.
        """
        gate = numerics_gate.NumericsGate(self._green.device)
        for units, stream in self._streams.items():
            gate.check(f"{self._green.units.count(units)} SMs", stream)
        del gate
        torch._C._cuda_clearCublasWorkspaces()  # one for each stream by now
        torch.cuda.empty_cache()

    def attach(self, scheduler: WorkerScheduler) -> None:
        """From now on the model runs on the green stream of the first split.

        Raises:
            GreenContextError: the scheduler runs the model elsewhere.
        """
        if not scheduler.enable_overlap:
            raise GreenContextError(
                "Green contexts cannot be used",
                why="with --disable-overlap-schedule SGLang has no forward stream",
                mend="drop that flag, or use --sm-partition-backend mps",
            )
        self._bound_cache()
        self._switch(scheduler, self._units)

    def _bound_cache(self) -> None:
        """Keep torch from holding memory for each stream without end.

        What one stream has freed serves that stream only. At the bound torch gives the
        other streams' back, which costs a synchronisation.
        """
        free, total = torch.cuda.mem_get_info(self._green.device)
        most = torch.cuda.memory_reserved(self._green.device) + free * CACHE_SHARE
        torch.cuda.set_per_process_memory_fraction(most / total, self._green.device)

    def take(self, scheduler: WorkerScheduler, allocation: SMAllocation) -> float:
        """Between two batches: the next one runs on the SMs of another split.

        Returns:
            CPU time that it took, microseconds.
        """
        began = time.perf_counter()
        units = self._green.units.range_of(self._role, allocation)
        if units != self._units:
            self._switch(scheduler, units)
        return 1e6 * (time.perf_counter() - began)

    def _switch(self, scheduler: WorkerScheduler, units: SMRange) -> None:
        run_on(scheduler, self._streams[units])
        self._graphs.use(units)
        self._units = units
