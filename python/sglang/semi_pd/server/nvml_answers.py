# SPDX-License-Identifier: Apache-2.0
"""What SGLang asks of the GPU while it is imported, answered without using the GPU.

Modules decide by compute capability which kernels to load. Torch answers such questions
by initialising CUDA, which fixes the process's MPS share and forbids forking it; NVML
knows the answers too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

CONTROL_DEVICE = "/dev/nvidiactl"


@dataclass(frozen=True)
class Properties:
    """The part of torch's device properties that importing asks for.

    Attributes:
        total_memory: bytes.
    """

    name: str
    major: int
    minor: int
    total_memory: int

    @property
    def capability(self) -> tuple[int, int]:
        return self.major, self.minor


@contextmanager
def instead_of_cuda() -> Iterator[None]:
    """Within it, torch's questions to the GPU are answered from NVML.

    Where there is no NVIDIA driver nothing is changed.
    """
    if not os.path.exists(CONTROL_DEVICE):
        yield
        return
    import torch

    properties = _ask()

    def of(device: Any = None) -> Properties:
        return properties

    answers = {
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "get_device_properties": of,
        "get_device_capability": lambda device=None: of(device).capability,
        "get_device_name": lambda device=None: of(device).name,
    }
    originals = {name: getattr(torch.cuda, name) for name in answers}
    try:
        for name, answer in answers.items():
            setattr(torch.cuda, name, answer)
        yield
    finally:
        for name, original in originals.items():
            setattr(torch.cuda, name, original)


def _ask() -> Properties:
    """Of the first visible GPU: those of one instance are of one kind."""
    import pynvml

    pynvml.nvmlInit()
    try:
        gpu = _first_visible()
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(gpu)
        return Properties(
            name=_text(pynvml.nvmlDeviceGetName(gpu)),
            major=major,
            minor=minor,
            total_memory=pynvml.nvmlDeviceGetMemoryInfo(gpu).total,
        )
    finally:
        pynvml.nvmlShutdown()


def _first_visible() -> Any:
    import pynvml

    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    if first.startswith("GPU-"):
        return pynvml.nvmlDeviceGetHandleByUUID(first.encode())
    return pynvml.nvmlDeviceGetHandleByIndex(int(first) if first.isdigit() else 0)


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
