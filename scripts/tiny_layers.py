# SPDX-License-Identifier: Apache-2.0
"""Layers of the tiny models: which weights each family has, and their values."""

from __future__ import annotations

import numpy as np

VOCAB_SIZE = 512
HIDDEN = 64
INTERMEDIATE = 128
LAYERS = 2
HEADS = 4
KV_HEADS = 2
HEAD_DIM = 16
MAX_POSITIONS = 4096

EXPERTS, EXPERTS_PER_TOKEN, EXPERT_INTERMEDIATE = 8, 2, 48
LATENT_RANK, ROPE_DIM, NOPE_DIM, VALUE_DIM = 32, 8, 16, 16
FIRST_DENSE = 1
"""DeepSeek: layers before the first one with experts."""

# Sharper attention (a higher QUERY_KEY_GAIN) varies answers more, and lets rounding
# errors grow faster; these values keep two float32 runs within 1e-4 in log probability.
QUERY_KEY_GAIN = 2.5
ATTENTION_GAIN = 3.0
LOGIT_GAIN = 3.0


Weights = dict[str, np.ndarray]


class WeightMaker:
    """Draws the weights of one model, in a fixed order, from one seeded source."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.Generator(np.random.PCG64(seed))

    def matrix(self, rows: int, columns: int, gain: float = 1.0) -> np.ndarray:
        """A linear layer that multiplies the size of its input by ``gain``."""
        drawn = self._random.standard_normal((rows, columns), dtype=np.float32)
        return drawn * np.float32(gain / np.sqrt(columns))

    def embedding(self) -> np.ndarray:
        """One vector of unit variance per token."""
        return self._random.standard_normal((VOCAB_SIZE, HIDDEN), dtype=np.float32)

    def bias(self, size: int) -> np.ndarray:
        """A small offset."""
        return self._random.standard_normal(size, dtype=np.float32) * np.float32(0.1)


def make_layer(maker: WeightMaker, arch: str, index: int) -> Weights:
    """Decoder layer ``index``, under the names of the family's checkpoints."""
    prefix = f"model.layers.{index}"
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    is_deepseek = arch == "deepseek_v2"
    if is_deepseek:
        weights = _latent_attention(maker, attention)
    else:
        weights = _attention(maker, attention)
    if arch == "qwen2_moe" or (is_deepseek and index >= FIRST_DENSE):
        weights |= _experts(maker, mlp, is_deepseek=is_deepseek)
    else:
        weights |= _mlp(maker, mlp, INTERMEDIATE)
    weights |= {
        f"{prefix}.input_layernorm.weight": np.ones(HIDDEN, np.float32),
        f"{prefix}.post_attention_layernorm.weight": np.ones(HIDDEN, np.float32),
    }
    if arch.startswith("qwen2"):
        for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            weights[f"{attention}.{name}_proj.bias"] = maker.bias(heads * HEAD_DIM)
    return weights


def _attention(maker: WeightMaker, prefix: str) -> Weights:
    queries, keys = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    sharp = QUERY_KEY_GAIN
    return {
        f"{prefix}.q_proj.weight": maker.matrix(queries, HIDDEN, gain=sharp),
        f"{prefix}.k_proj.weight": maker.matrix(keys, HIDDEN, gain=sharp),
        f"{prefix}.v_proj.weight": maker.matrix(keys, HIDDEN),
        f"{prefix}.o_proj.weight": maker.matrix(HIDDEN, queries, gain=ATTENTION_GAIN),
    }


def _latent_attention(maker: WeightMaker, prefix: str) -> Weights:
    """Multi-head latent attention: keys and values come from a latent vector."""
    queries, unpacked = HEADS * (NOPE_DIM + ROPE_DIM), HEADS * (NOPE_DIM + VALUE_DIM)
    values = HEADS * VALUE_DIM
    return {
        f"{prefix}.q_proj.weight": maker.matrix(queries, HIDDEN, gain=QUERY_KEY_GAIN),
        f"{prefix}.kv_a_proj_with_mqa.weight": maker.matrix(
            LATENT_RANK + ROPE_DIM, HIDDEN, gain=QUERY_KEY_GAIN
        ),
        f"{prefix}.kv_a_layernorm.weight": np.ones(LATENT_RANK, np.float32),
        f"{prefix}.kv_b_proj.weight": maker.matrix(
            unpacked, LATENT_RANK, gain=QUERY_KEY_GAIN
        ),
        f"{prefix}.o_proj.weight": maker.matrix(HIDDEN, values, gain=ATTENTION_GAIN),
    }


def _mlp(maker: WeightMaker, prefix: str, width: int) -> Weights:
    return {
        f"{prefix}.gate_proj.weight": maker.matrix(width, HIDDEN),
        f"{prefix}.up_proj.weight": maker.matrix(width, HIDDEN),
        f"{prefix}.down_proj.weight": maker.matrix(HIDDEN, width),
    }


def _experts(maker: WeightMaker, prefix: str, *, is_deepseek: bool) -> Weights:
    """The router and its experts; DeepSeek's have another that sees every token."""
    weights = {f"{prefix}.gate.weight": maker.matrix(EXPERTS, HIDDEN)}
    for expert in range(EXPERTS):
        weights |= _mlp(maker, f"{prefix}.experts.{expert}", EXPERT_INTERMEDIATE)
    if is_deepseek:
        weights |= _mlp(maker, f"{prefix}.shared_experts", EXPERT_INTERMEDIATE)
    return weights


def architecture(arch: str) -> dict[str, object]:
    """What ``config.json`` says of the family's layers."""
    config: dict[str, object] = {
        "model_type": arch,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": MAX_POSITIONS,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    return config | _OWN_FIELDS[arch]


_EXPERT_FIELDS: dict[str, object] = {
    "num_experts_per_tok": EXPERTS_PER_TOKEN,
    "moe_intermediate_size": EXPERT_INTERMEDIATE,
    "norm_topk_prob": True,
}
_OWN_FIELDS: dict[str, dict[str, object]] = {
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "mlp_bias": False,
    },
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False},
    "qwen2_moe": {
        "architectures": ["Qwen2MoeForCausalLM"],
        "use_sliding_window": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "num_experts": EXPERTS,
        "shared_expert_intermediate_size": 0,  # its gate runs in Triton only
        **_EXPERT_FIELDS,
    },
    "deepseek_v2": {
        "architectures": ["DeepseekV2ForCausalLM"],
        "attention_bias": False,
        "first_k_dense_replace": FIRST_DENSE,
        "kv_lora_rank": LATENT_RANK,
        "moe_layer_freq": 1,
        "n_group": 1,
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 1,
        "num_key_value_heads": HEADS,
        "q_lora_rank": None,
        "qk_nope_head_dim": NOPE_DIM,
        "qk_rope_head_dim": ROPE_DIM,
        "rope_scaling": {
            "type": "yarn",
            "factor": 2,
            "original_max_position_embeddings": MAX_POSITIONS // 2,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 0.707,
            "mscale_all_dim": 0.707,
        },
        "routed_scaling_factor": 1.0,
        "scoring_func": "softmax",
        "topk_group": 1,
        "topk_method": "greedy",
        "v_head_dim": VALUE_DIM,
        **_EXPERT_FIELDS,
    },
}
ARCHITECTURES = tuple(_OWN_FIELDS)
