# SPDX-License-Identifier: Apache-2.0
"""The reserve for the workers, and the table of what a GPU's memory goes to."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from sglang.semi_pd.errors import ConfigError
from sglang.semi_pd.resident.memory_plan import (
    GIB,
    MIB,
    WorkerNeeds,
    extra_reserve,
    require_room,
    table,
    worker_needs,
)

LLAMA_8B = SimpleNamespace(hidden_size=4096, intermediate_size=14336, vocab_size=128256)
DEEPSEEK = SimpleNamespace(
    hidden_size=2048,
    intermediate_size=10944,
    moe_intermediate_size=1408,
    num_experts_per_tok=6,
    vocab_size=102400,
)


def flags(*, tp_size: int = 1, chunk: int = 8192, graph_mb: float = 640) -> object:
    decode = SimpleNamespace(max_bs=256)
    return SimpleNamespace(
        chunked_prefill_size=chunk,
        max_prefill_tokens=16384,
        tp_size=tp_size,
        cuda_graph_config=SimpleNamespace(decode=decode),
        reserve_for_graph_mb=lambda: graph_mb,
    )


def test_an_8b_model_needs_less_than_upstream_keeps_free_anyway() -> None:
    needs = worker_needs(flags(), LLAMA_8B)
    reserve = sum(needs.reserve().values())
    assert 5 * GIB < reserve < 12 * GIB
    assert extra_reserve(needs, 17 * GIB) == 0
    assert extra_reserve(needs, 2 * GIB) == reserve - 2 * GIB


def test_a_chunk_of_any_size_is_the_largest_prefill() -> None:
    unlimited = worker_needs(flags(chunk=-1), LLAMA_8B)
    chunked = worker_needs(flags(), LLAMA_8B)
    assert unlimited.prefill_activations > chunked.prefill_activations
    assert unlimited.decode_activations == chunked.decode_activations


def test_ranks_divide_the_widest_layer_and_experts_count() -> None:
    one, two = (worker_needs(flags(tp_size=n), LLAMA_8B) for n in (1, 2))
    assert two.prefill_activations < one.prefill_activations
    assert worker_needs(flags(), DEEPSEEK).prefill_activations < one.prefill_activations


def test_table_sums_to_the_gpu() -> None:
    needs = WorkerNeeds(graphs=MIB, prefill_activations=GIB, decode_activations=GIB)
    text = table({"weights": 15 * GIB, **needs.reserve()}, 140 * GIB)
    sizes = [float(line.split()[-1]) for line in text.splitlines()[1:]]
    assert sizes[-1] == 140
    assert abs(sum(sizes[:-1]) - 140) < 0.05


def room(tokens: int) -> str:
    """Llama-3.1-8B has 128 KiB per token."""
    return require_room(
        tokens=tokens, context=131072, token_bytes=131072, block_bytes=4096
    )


def test_a_cache_bounded_to_less_than_one_request_is_told() -> None:
    assert "of 4000 tokens, and one request may have 131072" in room(4000)
    assert "give 4194304 blocks of 4096 bytes, or drop the flag" in room(4000)
    assert not room(131072)


def test_a_cache_in_which_nothing_would_run_is_refused() -> None:
    """The guide's 2000 blocks of 4096 bytes, for such a model."""
    with pytest.raises(ConfigError, match="a KV cache of 62 tokens: it is refused"):
        room(62)
