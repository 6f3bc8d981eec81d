# SPDX-License-Identifier: Apache-2.0
"""What the NVIDIA driver says of this host's GPUs: NVML, without a CUDA context."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sglang.semi_pd.errors import ConfigError

CONTROL_DEVICES = ("/dev/nvidiactl", "/dev/dxg")
"""The driver's, on Linux and under WSL."""
_COMPUTE_MODES = ("DEFAULT", "EXCLUSIVE_THREAD", "PROHIBITED", "EXCLUSIVE_PROCESS")


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has memory of a GPU; ``used_bytes`` is 0 if it cannot be told."""

    pid: int
    used_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU; memory in bytes, ``capability`` as (major, minor)."""

    index: int
    uuid: str
    name: str
    capability: tuple[int, int]
    compute_mode: str
    is_mig: bool
    total_bytes: int
    free_bytes: int
    holders: tuple[Holder, ...] = ()


@dataclass(frozen=True, slots=True)
class Driver:
    """The driver's version, the newest CUDA it can serve, and its GPUs."""

    version: str
    cuda: tuple[int, int]
    gpus: tuple[Gpu, ...]


def read_driver() -> Driver | None:
    """The driver of this host, None if there is none.

    Raises:
        ConfigError: there is one, but it cannot be asked.
    """
    if not any(map(os.path.exists, CONTROL_DEVICES)):
        return None
    try:
        import pynvml
    except ImportError:
        raise _unreadable("the package nvidia-ml-py is missing") from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise _unreadable(str(error)) from None
    try:
        return _read(pynvml)
    except pynvml.NVMLError as error:
        raise _unreadable(str(error)) from None
    finally:
        pynvml.nvmlShutdown()


def visible(driver: Driver, environ: Mapping[str, str]) -> tuple[Gpu, ...]:
    """The GPUs that ``CUDA_VISIBLE_DEVICES`` leaves, in its order.

    As CUDA does, the list ends at the first entry that names no GPU. Numbers are taken
    in the driver's order, which is CUDA's where all GPUs are alike.
    """
    listed = environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return driver.gpus
    found: list[Gpu] = []
    for entry in (one.strip() for one in listed.split(",")):
        matches = [gpu for gpu in driver.gpus if _is_named(gpu, entry)]
        if len(matches) != 1:
            break
        found += matches
    return tuple(found)


def _is_named(gpu: Gpu, entry: str) -> bool:
    return entry == str(gpu.index) or (
        entry.startswith("GPU-") and gpu.uuid.startswith(entry)
    )


def _read(nvml: Any) -> Driver:
    cuda = nvml.nvmlSystemGetCudaDriverVersion()
    return Driver(
        version=_text(nvml.nvmlSystemGetDriverVersion()),
        cuda=(cuda // 1000, cuda % 1000 // 10),
        gpus=tuple(_read_gpu(nvml, n) for n in range(nvml.nvmlDeviceGetCount())),
    )


def _read_gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(
        index=index,
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        name=_text(nvml.nvmlDeviceGetName(handle)),
        capability=tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle)),
        compute_mode=_COMPUTE_MODES[nvml.nvmlDeviceGetComputeMode(handle)],
        is_mig=_is_mig(nvml, handle),
        total_bytes=memory.total,
        free_bytes=memory.free,
        holders=_holders(nvml, handle),
    )


def _is_mig(nvml: Any, handle: Any) -> bool:
    try:
        return bool(nvml.nvmlDeviceGetMigMode(handle)[0])
    except nvml.NVMLError:
        return False  # a GPU that cannot be divided so


def _holders(nvml: Any, handle: Any) -> tuple[Holder, ...]:
    """Plain processes and clients of MPS; none where the driver may not tell."""
    found = {}
    for ask in (
        nvml.nvmlDeviceGetComputeRunningProcesses,
        nvml.nvmlDeviceGetMPSComputeRunningProcesses,
    ):
        try:
            found.update({one.pid: one.usedGpuMemory or 0 for one in ask(handle)})
        except nvml.NVMLError:
            continue
    return tuple(Holder(pid, used) for pid, used in sorted(found.items()))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _unreadable(why: str) -> ConfigError:
    return ConfigError(
        "the NVIDIA driver cannot be asked",
        why=f"its device file is there, but NVML answers: {why}",
        mend="run nvidia-smi; in a container start it with --gpus all and "
        "NVIDIA_DRIVER_CAPABILITIES=compute,utility",
    )
