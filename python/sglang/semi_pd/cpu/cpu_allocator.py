# SPDX-License-Identifier: Apache-2.0
"""KV page allocation on the CPU platform when SGLang runs undivided."""

from __future__ import annotations

import torch
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
from sglang.srt.mem_cache.memory_pool import KVCache


class TokenAllocator(TokenToKVPoolAllocator):
    """Upstream's page-of-one allocator, built with the arguments of a paged one.

    Upstream asks an out-of-tree platform for a *paged* allocator even where pages
    hold a single token; its paged allocator runs Triton kernels, which need a GPU.
    """

    def __init__(  # noqa: PLR0913 - upstream's arguments
        self,
        size: int,
        page_size: int,
        dtype: torch.dtype,
        device: str,
        kvcache: KVCache,
        need_sort: bool,  # noqa: FBT001
    ) -> None:
        if page_size != 1:
            raise ValueError(
                f"page_size must be 1 on the CPU platform, not {page_size}"
            )
        super().__init__(size, dtype, device, kvcache, need_sort)
