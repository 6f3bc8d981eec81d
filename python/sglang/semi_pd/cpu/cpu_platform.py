# SPDX-License-Identifier: Apache-2.0
"""Serve on a machine without a GPU, through SGLang's platform plugin interface.

SGLang's own CPU engine needs the compiled ``sgl_kernel`` for one CPU family.
This platform needs nothing but torch: native attention, one KV page per token,
no graphs. It is for trying out, testing and continuous integration, not for speed.

SGLang asks for the platform while its own modules are still being imported, so
the pools and the allocator are imported only when they are asked for.
"""

from __future__ import annotations

import importlib.util
import os
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

import torch
from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import SRTPlatform
from sglang.srt.plugins import PLATFORM_PLUGINS_GROUP

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

_NAME = "semi_pd_cpu"  # the entry point's
_DEVICE_PACKAGES = ("torch_npu", "habana_frameworks")
"""With these SGLang finds an NPU or HPU of which torch itself does not speak."""

DEFAULT_KV_TOKENS = 65536
"""KV pool size, in tokens, when ``--max-total-tokens`` is not given: free host
memory says nothing about how much of it a trial run should take."""


class CpuHostPlatform(CpuDeviceMixin, SRTPlatform):
    """Any CPU that torch runs on."""

    _enum = PlatformEnum.OOT

    def apply_server_args_defaults(self, server_args: ServerArgs) -> None:
        server_args.device = "cpu"
        server_args.disable_cuda_graph = True
        # torch brings NCCL along, and between ranks SGLang takes it for any device.
        os.environ.setdefault("SGLANG_NCCL_SO_PATH", "none")
        # An idle scheduler spins by default: here it would take a core from the others.
        server_args.sleep_on_idle = True
        if server_args.sampling_backend is None:
            server_args.sampling_backend = "pytorch"
        if server_args.grammar_backend is None:
            # xgrammar, the usual default, ends the scheduler where there is no GPU.
            server_args.grammar_backend = "llguidance"
        if server_args.max_total_tokens is None:
            server_args.max_total_tokens = DEFAULT_KV_TOKENS

    def get_device(self, device_id: int | None = None) -> str:
        """The device *name*: upstream stores it in ``ServerArgs.device``."""
        return "cpu"

    def get_default_attention_backend(self) -> str:
        return "torch_native"

    def get_mha_kv_pool_cls(self) -> type:
        from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

        return MHATokenToKVPool

    def get_mla_kv_pool_cls(self) -> type:
        from sglang.srt.mem_cache.memory_pool import MLATokenToKVPool

        return MLATokenToKVPool

    def get_paged_allocator_cls(self) -> type:
        from sglang.semi_pd.cpu.cpu_allocator import TokenAllocator

        return TokenAllocator

    def get_torch_profiler_activity_str(self) -> str:
        return "CPU"

    def get_torch_profiler_activity(self) -> torch.profiler.ProfilerActivity:
        return torch.profiler.ProfilerActivity.CPU


def activate() -> str | None:
    """Entry point ``sglang.srt.platforms``: stand aside wherever SGLang can serve."""
    if os.getenv("SGLANG_USE_CPU_ENGINE", "0") == "1":
        return None
    if torch.cuda.is_available() or torch.xpu.is_available():
        return None
    if _is_for_another_device():
        return None
    return f"{__name__}.{CpuHostPlatform.__name__}"


def _is_for_another_device() -> bool:
    """Whether SGLang would serve on a device that CUDA does not know, an NPU say.

    Another platform plugin has the host to itself, for SGLang refuses to choose
    between two; ``SGLANG_PLATFORM`` may name this one.
    """
    if torch.accelerator.is_available():
        return True
    if any(importlib.util.find_spec(name) for name in _DEVICE_PACKAGES):
        return True
    plugins = {one.name for one in entry_points(group=PLATFORM_PLUGINS_GROUP)}
    return bool(plugins - {_NAME}) and os.getenv("SGLANG_PLATFORM") != _NAME
