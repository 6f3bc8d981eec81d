# SPDX-License-Identifier: Apache-2.0
"""Graphs for green streams: decode's for each run of SM units, prefill's for one.

A CUDA graph runs on the SMs of the stream that it was captured on, whichever stream it
is launched into. SGLang's runner captures and replays one set; decode's captures
several here, and is given the one that is to be replayed. Prefill's are of the split
that a worker begins with. While it has another one, prefill runs without: a short
prompt then waits for its launches.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from sglang.semi_pd.partition.green_context import GreenContextError
from sglang.semi_pd.partition.sm_ranges import SMRange
from sglang.semi_pd.workers.graph_sizes import (
    DECODE_RUNNER,
    PREFILL_RUNNER,
    leave_out_near,
)

if TYPE_CHECKING:
    from sglang.srt.model_executor.runner.decode_cuda_graph_runner import (
        DecodeCudaGraphRunner,
    )

logger = logging.getLogger(__name__)

ATTENTION_BACKENDS = ("FlashAttentionBackend", "TritonAttnBackend")
"""The classes of what ``green_needs`` names."""


class GraphSets:
    """The graphs of one worker.

    Args:
        streams: those that may be in use, by their units.
        units: those in use first.
    """

    def __init__(
        self, streams: dict[SMRange, torch.cuda.ExternalStream], units: SMRange
    ) -> None:
        self._streams, self._units = streams, units
        self._runner: DecodeCudaGraphRunner | None = None
        self._sets: dict[SMRange, tuple[dict[Any, Any], dict[Any, Any]]] = {}
        self._capturing: torch.cuda.ExternalStream | None = None
        self._prefill_units: SMRange | None = None

    def hooks(self) -> dict[str, Callable[..., Any]]:
        """What wraps SGLang's capture, by dotted name."""
        return {
            f"{DECODE_RUNNER}.capture": self._capture_decode,
            f"{PREFILL_RUNNER}.capture": self._capture_prefill,
            f"{PREFILL_RUNNER}.can_run_graph": self._can_run_prefill,
            "sglang.srt.distributed.parallel_state.graph_capture": self._on_green,
        }

    def use(self, units: SMRange) -> None:
        """Replay the graphs of these units from now on."""
        self._units = units
        if self._runner is not None:
            backend = self._runner.backend
            backend._graphs, backend._outputs = self._sets[units]

    def _capture_decode(
        self, original: Callable[..., None], runner: DecodeCudaGraphRunner
    ) -> None:
        from sglang.srt.model_executor.runner_backend.full_cuda_graph_backend import (
            FullCudaGraphBackend,
        )

        if type(runner.backend) is not FullCudaGraphBackend:
            raise _error(
                "the decode graphs are not of SGLang's kind 'full'",
                "drop --cuda-graph-backend-decode",
            )
        attention = type(runner.attn_backend).__name__
        if attention not in ATTENTION_BACKENDS:
            raise _error(
                f"{attention} keeps one state for each batch size, whatever the SMs",
                "choose --attention-backend fa3 or triton",
            )
        began = time.monotonic()
        free = torch.cuda.mem_get_info()[0]
        leave_out_near(runner)
        self._runner = runner
        for units, stream in self._streams.items():
            self._sets[units] = {}, {}
            self.use(units)
            self._capturing = stream
            original(runner)
        self._capturing = None
        self.use(self._units)
        logger.info(
            "Decode graphs: %d batch sizes, %d sets of SMs, %.1f s, %.2f GB",
            len(runner.capture_bs),
            len(self._sets),
            time.monotonic() - began,
            (free - torch.cuda.mem_get_info()[0]) / 1e9,
        )

    def _capture_prefill(self, original: Callable[..., None], runner: Any) -> None:
        self._prefill_units = self._units
        self._capturing = self._streams[self._units]
        original(runner)
        self._capturing = None

    def _can_run_prefill(
        self, original: Callable[..., bool], runner: Any, forward_batch: Any
    ) -> bool:
        return self._units == self._prefill_units and original(runner, forward_batch)

    def _on_green(
        self, original: Callable[..., AbstractContextManager[Any]], stream: Any = None
    ) -> AbstractContextManager[Any]:
        return original(stream=stream or self._capturing)


def _error(why: str, mend: str) -> GreenContextError:
    return GreenContextError(
        "Green contexts cannot be used",
        why=why,
        mend=f"{mend}, or use --sm-partition-backend mps",
    )
