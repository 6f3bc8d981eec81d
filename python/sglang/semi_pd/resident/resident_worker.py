# SPDX-License-Identifier: Apache-2.0
"""The resident: loads the model, owns the memory, and then runs nothing.

It loads weights with SGLang's own loader, lets SGLang size the memory pools, and moves
both into shared arenas. Afterwards it only answers workers that attach: nothing that
serves a request depends on its CPU, and its memory outlives every worker.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import torch
from sglang.semi_pd.errors import ConfigError
from sglang.semi_pd.launch import gpu_rules, model_family
from sglang.semi_pd.launch.start_progress import Phase
from sglang.semi_pd.memory.block_table import BlockTable
from sglang.semi_pd.memory.memory_arena import ArenaBuilder, TensorRef
from sglang.semi_pd.resident import memory_plan
from sglang.semi_pd.resident.model_image import take_image
from sglang.semi_pd.resident.resident_channel import (
    AttachRequest,
    Manifest,
    PoolSizes,
    ResidentServer,
)
from sglang.semi_pd.resident.shared_pools import SPARE_ROWS, SupplyNew
from sglang.semi_pd.utils import END_SIGNAL
from sglang.semi_pd.workers.upstream_hooks import install_resident
from sglang.srt.distributed.parallel_state_wrapper import ParallelState
from sglang.srt.managers.tp_worker import TpModelWorker
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool
from sglang.srt.platforms import current_platform
from sglang.srt.runtime_context import publish

if TYPE_CHECKING:
    from sglang.semi_pd.workers.worker_spec import WorkerSpec
    from sglang.srt.model_executor.model_runner import ModelRunner

logger = logging.getLogger(__name__)

END_SIGNALS = {END_SIGNAL}

SUPPORTED_POOLS = (MHATokenToKVPool, MLATokenToKVPool)
"""KV caches whose every buffer is created where the hooks look."""


class Resident:
    """The memory of one rank and the book of who may use it."""

    def __init__(self, spec: WorkerSpec, enter: Callable[[str], None]) -> None:
        self._started = time.monotonic()
        publish(spec.server_args, role="weight_cache_daemon")
        builder = ArenaBuilder(torch.device(spec.device))
        supply = SupplyNew(builder)
        needs = _needs(spec)
        install_resident(supply, spec.pool_bytes, needs)
        _require_quantisation(spec)
        enter("loading the weights")
        worker = TpModelWorker(
            spec.server_args,
            spec.gpu_id,
            _parallel_state(spec),
            spec.port_args.nccl_port,
        )
        enter("weights loaded; sizing the KV cache")
        worker.alloc_memory_pool()
        runner = worker.model_runner
        _require_supported(runner.token_to_kv_pool)
        enter(
            f"KV cache has room for {runner.max_total_num_tokens} tokens; moving "
            "weights and KV cache into shared memory"
        )
        self._builder = builder
        self._manifest = _describe(runner, builder, supply)
        self._table = BlockTable.create(
            num_pages=runner.max_total_num_tokens // runner.page_size,
            num_rows=runner.max_running_requests + SPARE_ROWS,
            page_size=runner.page_size,
        )
        current_platform.synchronize()
        if spec.pool_bytes is not None:
            _require_room(runner, supply, spec)
        if needs is not None:
            logger.info("%s", _memory_table(runner, self._manifest, needs))

    def init_info(self) -> dict[str, Any]:
        """What upstream's launcher expects of a process that is ready."""
        return {"status": "ready", "seconds": time.monotonic() - self._started}

    def answer(self, request: AttachRequest) -> tuple[Manifest, list[int]]:
        """Register a worker and describe the memory to it."""
        slot = epoch = 0
        if request.role.is_worker:
            book = BlockTable.attach(self._table.fd)
            lease = book.register_worker(request.role, request.generation)
            slot, epoch = lease.slot, lease.epoch
        shared = [arena.fileno() for arena in self._builder.arenas]
        fds = [self._table.fd, *(fd for fd in shared if fd is not None)]
        return self._manifest(slot, epoch), fds


def serve(spec: WorkerSpec, ready: Connection) -> None:
    """Body of the resident process; returns when it is told to end."""
    # Before any thread exists: they inherit it, and a signal must wait for sigwait.
    signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)
    resident = Resident(spec, lambda doing: ready.send(Phase(doing)))
    ResidentServer(spec.resident_socket, resident.answer).start()
    ready.send(resident.init_info())
    signal.sigwait(END_SIGNALS)


def _describe(runner: ModelRunner, builder: ArenaBuilder, supply: SupplyNew) -> Any:
    rows, context = runner.req_to_token_pool.req_to_token.shape
    req_to_token: TensorRef = builder.empty((rows + SPARE_ROWS, context), torch.int32)
    image = take_image(runner.model, builder)
    config = runner.memory_pool_config
    sizes = PoolSizes(
        config.max_total_num_tokens,
        config.max_running_requests,
        config.mem_fraction_static,
    )

    def manifest(slot: int, epoch: int) -> Manifest:
        handles = [arena.handle() for arena in builder.arenas]
        return Manifest(slot, epoch, handles, image, supply.refs, req_to_token, sizes)

    return manifest


def _require_room(runner: ModelRunner, supply: SupplyNew, spec: WorkerSpec) -> None:
    cache_bytes = sum(ref.extent for ref in supply.refs)
    said = memory_plan.require_room(
        tokens=runner.max_total_num_tokens,
        context=runner.model_config.context_len,
        token_bytes=cache_bytes // runner.max_total_num_tokens,
        block_bytes=spec.server_args.unified_memory_block_size,
    )
    if said:
        logger.warning("%s", said)


def _needs(spec: WorkerSpec) -> memory_plan.WorkerNeeds | None:
    if not spec.device.startswith("cuda"):
        return None
    config = spec.server_args.get_model_config().hf_text_config
    return memory_plan.worker_needs(spec.server_args, config)


def _memory_table(
    runner: ModelRunner, describe: Any, needs: memory_plan.WorkerNeeds
) -> str:
    manifest: Manifest = describe(0, 0)
    cache = sum(ref.extent for ref in manifest.kv_buffers)
    rows = manifest.req_to_token.extent
    weights = sum(arena.nbytes for arena in manifest.arenas) - cache - rows
    parts = {
        "weights": weights,
        f"KV cache, {runner.max_total_num_tokens} tokens": cache,
        "request rows": rows,
        **needs.reserve(),
    }
    _, total = torch.cuda.mem_get_info(runner.gpu_id)
    return memory_plan.table(parts, total)


def _parallel_state(spec: WorkerSpec) -> ParallelState:
    args = spec.server_args
    return ParallelState(
        tp_rank=spec.tp_rank,
        tp_size=args.tp_size,
        pp_rank=0,
        pp_size=1,
        dp_rank=None,
        dp_size=1,
        attn_tp_rank=spec.tp_rank,
        attn_tp_size=args.tp_size,
        attn_cp_rank=0,
        attn_cp_size=args.attn_cp_size,
        attn_dp_rank=0,
        attn_dp_size=1,
        moe_ep_rank=spec.moe_ep_rank,
        moe_ep_size=args.ep_size,
        moe_dp_rank=0,
        moe_dp_size=args.moe_dp_size,
        dcp_size=args.dcp_size,
        gpu_id=spec.gpu_id,
    )


def _require_quantisation(spec: WorkerSpec) -> None:
    """What flags and ``config.json`` did not tell: SGLang looks elsewhere too."""
    config = spec.server_args.get_model_config()
    method = config.quantization or ""
    model_family.require_quantisation(method, config.model_path)
    if spec.device.startswith("cuda"):
        gpu_rules.require_kernels(
            torch.cuda.get_device_name(spec.gpu_id),
            torch.cuda.get_device_capability(spec.gpu_id),
            method,
        )


def _require_supported(pool: object) -> None:
    if type(pool) not in SUPPORTED_POOLS:
        raise ConfigError(
            f"Semi-PD cannot share a KV cache of type {type(pool).__name__}",
            why="only multi-head and multi-head latent attention caches are shared",
            mend="serve this model without Semi-PD",
        )
