# SPDX-License-Identifier: Apache-2.0
"""Whether this host's GPUs can serve what was asked for, apart from any launch.

The rules work on what ``gpu`` read, so they can be tried on any host.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sglang.semi_pd.errors import ConfigError
from sglang.semi_pd.launch import model_family, model_path, mps_daemons
from sglang.semi_pd.launch.gpu import Driver, Gpu, read_driver, visible

if TYPE_CHECKING:
    from sglang.semi_pd.launch.typed_flags import CommandLine

VOLTA = (7, 0)
ADA = (8, 9)
_GIB = 2**30


def check(line: CommandLine, environ: Mapping[str, str]) -> str:
    """Refuse GPUs that cannot serve this command line; says so where there is none.

    Which GPUs it would use may be said in a file (``--config``): then none is judged.

    Raises:
        ConfigError: for the first rule that is broken.
    """
    ranks = line.number("tp_size", int, 1)
    if (line.value("--device") or "cuda") != "cuda":
        require_nodes(ranks, environ)
        return ""
    driver = read_driver()
    seen = visible(driver, environ) if driver else ()
    if driver is not None:
        mps_daemons.require_no_stranger(environ)
    if not seen:
        require_nodes(ranks, environ)
        return no_gpu()
    if line.decides("device", "tp_size", "base_gpu_id", "gpu_id_step"):
        require_served(line, seen)
    return ""


def require_served(line: CommandLine, seen: Sequence[Gpu]) -> None:
    """Refuse those of the visible GPUs that it would use, for the first rule broken."""
    ranks = line.number("tp_size", int, 1)
    first = line.number("base_gpu_id", int, 0)
    step = line.number("gpu_id_step", int, 1)
    require_ranks(seen, first, step, ranks)
    gpus = seen[first : first + ranks * step : step]
    backend = line.value("--sm-partition-backend") or "auto"
    quantised = quantisation(line)
    for gpu in gpus:
        require_shared(gpu)
        require_kernels(gpu.name, gpu.capability, quantised)
        if backend in ("green", "mps"):
            require_divisible(gpu)
    require_room(gpus, model_path.weight_bytes(line.model_path), line.model_path)


def quantisation(line: CommandLine) -> str:
    """How the weights are quantised, as far as flags and a model's folder tell."""
    asked = line.value("--quantization")
    if asked or not os.path.isdir(line.model_path):
        return asked or ""
    return model_family.quantisation(model_family.read_config(line.model_path))


def no_gpu() -> str:
    """What serving without a GPU means here.

    Raises:
        ConfigError: there is only one core for two workers.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise ConfigError(
            "this host cannot serve without a GPU",
            why=f"prefill and decode need a core each, and only {cores} may be used",
            mend="allow two cores or more (taskset, docker --cpus/--cpuset-cpus)",
        )
    return (
        "no NVIDIA GPU: CPU mode, shares are of the cores "
        f"{cores[0]}-{cores[-1]} instead of SMs; for trying out, not for speed"
    )


def require_nodes(ranks: int, environ: Mapping[str, str]) -> None:
    """Refuse more ranks than this host has memory nodes, as SGLang does in the end."""
    nodes = len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or 1
    if ranks > nodes and not environ.get("SGLANG_CPU_OMP_THREADS_BIND"):
        raise ConfigError(
            f"--tp-size {ranks} is refused",
            why=f"without a GPU each rank needs a NUMA node, and this host has {nodes}",
            mend=f"use --tp-size {nodes}, or name each rank's cores in "
            "SGLANG_CPU_OMP_THREADS_BIND",
        )


def require_ranks(seen: Sequence[Gpu], first: int, step: int, ranks: int) -> None:
    """Refuse more ranks than there are GPUs from ``first`` on, each ``step`` apart."""
    places = range(first, first + ranks * step, step)
    if places[-1] >= len(seen):
        raise ConfigError(
            f"--tp-size {ranks} is refused",
            why=f"it would use the GPUs {', '.join(map(str, places))}, and "
            f"{len(seen)} may be used",
            mend="lower --tp-size, or check --base-gpu-id and CUDA_VISIBLE_DEVICES",
        )


def require_cuda(driver: Driver, torch_cuda: str) -> None:
    """Refuse a driver that is older than the CUDA torch was built for."""
    major = int(torch_cuda.partition(".")[0] or 0)
    if driver.cuda[0] < major:
        served = ".".join(map(str, driver.cuda))
        raise ConfigError(
            f"driver {driver.version} is too old",
            why=f"it serves CUDA {served}, and torch is built for CUDA {torch_cuda}",
            mend=f"update the driver to one for CUDA {major}",
        )


def require_shared(gpu: Gpu) -> None:
    """Refuse a GPU that lets only one process in: an instance has several."""
    if gpu.compute_mode != "DEFAULT":
        raise ConfigError(
            f"GPU {gpu.index} is in compute mode {gpu.compute_mode}",
            why="resident and workers are several processes on it",
            mend=f"run nvidia-smi -i {gpu.index} -c DEFAULT",
        )


def require_kernels(name: str, capability: tuple[int, int], quantised: str) -> None:
    """Refuse a GPU without fp8 of its own: Marlin's kernel for it has locks.

    They are a tensor of the model, and so the workers would share them.
    """
    if quantised == "fp8" and capability < ADA:
        raise ConfigError(
            f"{name} cannot serve fp8 weights with Semi-PD",
            why="it computes in fp8 from compute capability 8.9 (Ada) on only, and the "
            "kernels that SGLang has for older ones cannot be used by two workers",
            mend="serve unquantised weights, or use a newer GPU",
        )


def require_divisible(gpu: Gpu) -> None:
    """Refuse a GPU whose SMs MPS cannot divide."""
    if gpu.is_mig:
        raise ConfigError(
            f"GPU {gpu.index} is divided by MIG",
            why="shares of the SMs by MPS were not tried on a MIG device",
            mend=f"run nvidia-smi -i {gpu.index} -mig 0, or use "
            "--sm-partition-backend none",
        )
    if gpu.capability < VOLTA:
        raise ConfigError(
            f"GPU {gpu.index} ({gpu.name}) is too old for shares of its SMs",
            why="MPS has them from compute capability 7.0 (Volta) on",
            mend="use --sm-partition-backend none",
        )


def require_divisible_at(place: int, environ: Mapping[str, str]) -> None:
    """As ``require_divisible``, for the GPU at this place among the visible ones."""
    driver = read_driver()
    for gpu in visible(driver, environ)[place : place + 1] if driver else ():
        require_divisible(gpu)


def require_room(gpus: Sequence[Gpu], weights: int, model: str) -> None:
    """Refuse weights that are larger than what is free, naming who has the rest."""
    if not gpus or not weights:
        return
    needed = weights // len(gpus)
    for gpu in gpus:
        if needed <= gpu.free_bytes:
            continue
        holders = ", ".join(describe(holder.pid) for holder in gpu.holders)
        raise ConfigError(
            f"{model} does not fit on GPU {gpu.index}",
            why=f"its weights need {needed / _GIB:.1f} GiB and "
            f"{gpu.free_bytes / _GIB:.1f} of {gpu.total_bytes / _GIB:.1f} GiB are free"
            + (f"; held by {holders}" if holders else ""),
            mend="end what holds the memory, or use more GPUs (--tp-size)",
        )


def describe(pid: int) -> str:
    """A process by number and name."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
            return f"pid {pid} ({file.read().strip()})"
    except OSError:
        return f"pid {pid}"
