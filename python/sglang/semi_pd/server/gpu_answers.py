# SPDX-License-Identifier: Apache-2.0
"""What SGLang asks of the GPU while it is imported, answered without using the GPU.

Modules decide by compute capability which kernels to load. Torch and cuda-bindings
answer such questions by initialising CUDA, which forbids forking the process and fixes
its MPS share. So a child asks once, and its answers are given here until the imports
are over.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

CONTROL_DEVICE = "/dev/nvidiactl"
CUDA_DEVICE = "/dev/nvidia-uvm"
"""A process has it open once it has used CUDA; NVML leaves it alone."""

ATTRIBUTES = range(1, 150)
"""Of ``CUdevice_attribute``; those that a driver does not know are left out."""

PROPERTIES = {
    "max_threads_per_block": 1,
    "shared_memory_per_block": 8,
    "warp_size": 10,
    "clock_rate": 13,
    "multi_processor_count": 16,
    "is_integrated": 18,
    "memory_clock_rate": 36,
    "memory_bus_width": 37,
    "L2_cache_size": 38,
    "max_threads_per_multi_processor": 39,
    "major": 75,
    "minor": 76,
    "shared_memory_per_multiprocessor": 81,
    "regs_per_multiprocessor": 82,
    "is_multi_gpu_board": 84,
    "shared_memory_per_block_optin": 97,
}
"""Torch's names of device properties that are attributes of the driver."""


@dataclass(frozen=True)
class GPU:
    """What the driver says of the first visible GPU; those of an instance are alike.

    Attributes:
        total_memory: bytes.
        attributes: by number of ``CUdevice_attribute``.
        count: visible GPUs.
    """

    name: str
    total_memory: int
    attributes: dict[int, int]
    count: int

    @property
    def capability(self) -> tuple[int, int]:
        return self.attributes[PROPERTIES["major"]], self.attributes[
            PROPERTIES["minor"]
        ]

    @property
    def properties(self) -> SimpleNamespace:
        """As ``torch.cuda.get_device_properties`` names them."""
        known = {
            name: self.attributes[number]
            for name, number in PROPERTIES.items()
            if number in self.attributes
        }
        return SimpleNamespace(
            name=self.name, total_memory=self.total_memory, gcnArchName="", **known
        )


@contextmanager
def instead_of_cuda() -> Iterator[None]:
    """Within it, questions to the GPU are answered without it.

    Modules may keep the functions that answer; afterwards those ask the GPU itself.
    Where there is no NVIDIA driver nothing is changed.
    """
    if not os.path.exists(CONTROL_DEVICE):
        yield
        return
    import torch

    gpu = _ask_in_a_child()
    changes = [
        _Changes(torch.cuda, _torch_answers(gpu)),
        _Changes(torch._C, {"_get_accelerator": lambda *_: torch.device("cuda")}),
    ]
    with suppress(ImportError):
        from cuda.bindings import driver

        changes.append(_Changes(driver, _driver_answers(gpu, driver)))
    try:
        yield
    finally:
        for change in changes:
            change.undo()


def open_gpus() -> tuple[str, ...]:
    """What this process has open and only CUDA opens."""
    found = set()
    for entry in os.scandir("/proc/self/fd"):
        with suppress(OSError):
            found.add(os.readlink(entry.path))
    return tuple(sorted(name for name in found if name.startswith(CUDA_DEVICE)))


class _Changes:
    """Functions of a module that answer for the originals until undone."""

    def __init__(self, module: ModuleType, answers: dict[str, Callable[..., Any]]):
        self._module = module
        self._originals = {name: getattr(module, name) for name in answers}
        self._answering = True
        for name, answer in answers.items():
            setattr(module, name, self._first(answer, self._originals[name]))

    def undo(self) -> None:
        self._answering = False
        for name, original in self._originals.items():
            setattr(self._module, name, original)

    def _first(self, answer: Callable[..., Any], original: Callable[..., Any]) -> Any:
        def function(*args: Any, **kwargs: Any) -> Any:
            return (answer if self._answering else original)(*args, **kwargs)

        return function


def _torch_answers(gpu: GPU) -> dict[str, Callable[..., Any]]:
    return {
        "is_available": lambda: True,
        "device_count": lambda: gpu.count,
        "current_device": lambda: 0,
        "get_device_properties": lambda device=None: gpu.properties,
        "get_device_capability": lambda device=None: gpu.capability,
        "get_device_name": lambda device=None: gpu.name,
    }


def _driver_answers(gpu: GPU, driver: ModuleType) -> dict[str, Callable[..., Any]]:
    """As cuda-bindings gives them: the error code, then the value."""
    fine = driver.CUresult.CUDA_SUCCESS
    return {
        "cuInit": lambda flags: (fine,),
        "cuDeviceGetCount": lambda: (fine, gpu.count),
        "cuDeviceGet": lambda ordinal: (fine, driver.CUdevice(ordinal)),
        "cuDeviceGetAttribute": lambda attribute, device: (
            fine,
            gpu.attributes[int(attribute)],
        ),
    }


def _ask_in_a_child() -> GPU:
    """Fork, while there is only one thread, and let the child use CUDA.

    Raises:
        OSError: it could not; the reason is its message.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            answer = json.dumps(_ask())
        except Exception as error:  # noqa: BLE001 - told to the parent
            answer = json.dumps({"error": str(error)})
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = json.loads(pipe.read() or '{"error": "the child died"}')
    os.waitpid(pid, 0)
    if "error" in said:
        raise OSError(f"the GPU's properties could not be read: {said['error']}")
    said["attributes"] = {int(k): v for k, v in said["attributes"].items()}
    return GPU(**said)


def _ask() -> dict[str, Any]:
    cuda = ctypes.CDLL("libcuda.so.1")
    _must(cuda.cuInit(0), "cuInit")
    count, device, value = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    memory, name = ctypes.c_size_t(), ctypes.create_string_buffer(256)
    _must(cuda.cuDeviceGetCount(ctypes.byref(count)), "cuDeviceGetCount")
    _must(cuda.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
    _must(cuda.cuDeviceGetName(name, len(name), device), "cuDeviceGetName")
    _must(cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device), "cuDeviceTotalMem")
    attributes = {}
    for number in ATTRIBUTES:
        if not cuda.cuDeviceGetAttribute(ctypes.byref(value), number, device):
            attributes[number] = value.value
    return {
        "name": name.value.decode(),
        "total_memory": memory.value,
        "attributes": attributes,
        "count": count.value,
    }


def _must(code: int, what: str) -> None:
    if code:
        raise OSError(f"{what} gave error {code}")
