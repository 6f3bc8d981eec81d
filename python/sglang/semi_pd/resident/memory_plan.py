# SPDX-License-Identifier: Apache-2.0
"""What a GPU's memory goes to: the reserve for the workers, and the sum as a table.

Upstream sizes the KV cache for one process. Here the resident holds weights and cache,
and beside it two workers need memory of their own, and two more while one pair takes
over from the other: CUDA contexts, graphs, activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sglang.semi_pd.errors import ConfigError

GIB = 1 << 30
MIB = 1 << 20

CONTEXT_BYTES = 600 * MIB
"""CUDA context, kernels and library workspaces of one process; 550 MiB were measured
for two workers of an 8B model on an H200 (docs/performance.md), graphs included."""
PAIRS = 2
"""Two workers serve; two standbys take over from them."""
BF16_BYTES = 2
FEWEST_TOKENS = 128
"""With fewer even SGLang's own first request waits for ever: room for its answer and
decode's reserve are kept free beside its prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerNeeds:
    """What one pair of workers takes beside weights and cache, in bytes."""

    graphs: int
    prefill_activations: int
    decode_activations: int

    def reserve(self) -> Mapping[str, int]:
        """The parts of the reserve, of two pairs and the resident."""
        return {
            f"contexts of {2 * PAIRS + 1} processes": (2 * PAIRS + 1) * CONTEXT_BYTES,
            f"CUDA graphs of {PAIRS} pairs": PAIRS * self.graphs,
            f"activations of {PAIRS} prefill workers": PAIRS * self.prefill_activations,
            f"activations of {PAIRS} decode workers": PAIRS * self.decode_activations,
        }


def worker_needs(server_args: Any, config: Any) -> WorkerNeeds:
    """Estimate from the flags and the model's configuration.

    Args:
        server_args: resolved; chunk size, graphs and ranks are read off it.
        config: the text model's configuration.
    """
    chunk = server_args.chunked_prefill_size
    tokens = chunk if chunk and chunk > 0 else server_args.max_prefill_tokens
    largest_batch = server_args.cuda_graph_config.decode.max_bs or 1
    per_token = _activation_bytes(config, server_args.tp_size)
    logits = _logits_bytes(config, largest_batch)
    return WorkerNeeds(
        graphs=round(server_args.reserve_for_graph_mb() * MIB),
        prefill_activations=tokens * per_token + logits,
        decode_activations=largest_batch * per_token + logits,
    )


def extra_reserve(needs: WorkerNeeds, already_kept: int) -> int:
    """Bytes to take off the cache beyond what upstream keeps free."""
    return max(0, sum(needs.reserve().values()) - already_kept)


def table(parts: Mapping[str, int], total: int) -> str:
    """The parts and what is left of ``total``, in GiB, a line each."""
    rows = {**parts, "left": total - sum(parts.values()), "GPU": total}
    width = max(map(len, rows))
    lines = [f"  {name:<{width}} {size / GIB:8.2f}" for name, size in rows.items()]
    return "\n".join(["GPU memory in GiB, reserves estimated:", *lines])


def require_room(
    *, tokens: int, context: int, token_bytes: int, block_bytes: int
) -> str:
    """What to say of a cache that the user bounded to less than one long request.

    Args:
        context: tokens that one request of the model may have.

    Raises:
        ConfigError: it is so small that no request would ever run.
    """
    if tokens >= context:
        return ""
    holds = f"--unified-memory-blocks leaves a KV cache of {tokens} tokens"
    enough = -(-context * token_bytes // block_bytes)
    mend = f"give {enough} blocks of {block_bytes} bytes, or drop the flag"
    if tokens < FEWEST_TOKENS:
        raise ConfigError(
            f"{holds}: it is refused",
            why=f"a token has {token_bytes} bytes, and {FEWEST_TOKENS} must fit",
            mend=mend,
        )
    return f"{holds}, and one request may have {context}; {mend}"


def _activation_bytes(config: Any, tp_size: int) -> int:
    """One token's largest working set: a few hidden states and the widest layer.

    Of a layer with experts, every expert of a token counts.
    """
    width = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    experts = getattr(config, "num_experts_per_tok", None) or 0
    routed = experts * (getattr(config, "moe_intermediate_size", None) or width)
    widest = max(width, routed) // tp_size
    return BF16_BYTES * (8 * config.hidden_size + 4 * widest)


def _logits_bytes(config: Any, rows: int) -> int:
    """Logits and probabilities in FP32, for the requests of one batch."""
    return 2 * 4 * rows * int(config.vocab_size)
