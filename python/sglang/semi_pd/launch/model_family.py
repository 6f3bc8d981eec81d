# SPDX-License-Identifier: Apache-2.0
"""What kind of model a path names, from its ``config.json`` alone."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from sglang.semi_pd.errors import ConfigError

Config = Mapping[str, Any]

_STATE_KEYS = (
    "hybrid_override_pattern",
    "layers_block_type",
    "linear_attn_config",
    "linear_num_key_heads",
    "mamba_d_state",
    "mamba_num_heads",
    "attn_layer_period",
    "full_attention_interval",
    "ssm_state_size",
    "ssm_cfg",
    "hybrid_layer_pattern",
    "is_hybrid_swa",
)
_QUANTISATION_KEYS = ("quantization_config", "compression_config")
_MEDIA_KEYS = ("vision_config", "audio_config", "thinker_config", "mm_config")
_HYBRID_ARCHITECTURES = (
    "DeepseekV4",
    "GptOss",
    "Gemma4",
    "Inkling",
    "Laguna",
    "Llama4",
    "Mellum",
    "MiMoV2",
    "Step3p",
)


def read_config(model_path: str, revision: str | None = None) -> Config | None:
    """The model's configuration, from the folder or the Hugging Face cache or hub.

    None if it cannot be had, which is for SGLang's own loading to report.
    """
    path = os.path.join(model_path, "config.json")
    if not os.path.isdir(model_path):
        path = _from_hub(model_path, revision)
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None


def is_hybrid(config: Config) -> bool:
    """Whether layers differ in what they keep per token: windows, or a state."""
    text = _text_config(config)
    layer_types = set(text.get("layer_types") or ())
    return (
        any(text.get(key) for key in _STATE_KEYS)
        or bool(layer_types - {"full_attention"})
        or _architecture(config).startswith(_HYBRID_ARCHITECTURES)
    )


def unsupported_kind(config: Config | None) -> str:
    """The name of a kind of model that Semi-PD refuses, empty if it serves it."""
    if config is None:
        return ""
    if any(config.get(key) for key in _MEDIA_KEYS):
        return "multimodal models"
    if is_hybrid(config):
        return "models with hybrid attention"
    if _text_config(config).get("index_topk"):
        return "models with sparse attention"
    return ""


def quantisation(config: Config | None) -> str:
    """How a checkpoint says that its weights are quantised, empty if it does not.

    SGLang quantises by it without being asked to on the command line.
    """
    for part in (config, _text_config(config)) if config else ():
        for said in filter(None, map(part.get, _QUANTISATION_KEYS)):
            names = said if isinstance(said, dict) else {}
            method = names.get("quant_method") or names.get("quant_algo")
            return str(method or "a method without a name").lower()
    return ""


def require_quantisation(method: str, model: str) -> None:
    """Refuse weights whose loading leaves more than the workers can be given.

    The kernels of AWQ, GPTQ and their like keep tensors, or locks, of their own.

    Raises:
        ConfigError: naming the method.
    """
    if method not in ("", "fp8"):
        raise ConfigError(
            f"model {model} is refused",
            why=f"its weights are quantised ({method}), and Semi-PD does not support "
            "that yet",
            mend="serve unquantised or block-wise fp8 weights",
        )


def require_supported(config: Config | None, model: str) -> None:
    """Refuse a kind of model that Semi-PD does not serve.

    Raises:
        ConfigError: naming the kind.
    """
    require_quantisation(quantisation(config), model)
    kind = unsupported_kind(config)
    if kind:
        raise ConfigError(
            f"model {model} is refused",
            why=f"Semi-PD does not support {kind} yet",
            mend="supported: text models with full attention in every layer, such as "
            "Llama and Qwen; or drop the Semi-PD flags",
        )


def _text_config(config: Config) -> Config:
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def _architecture(config: Config) -> str:
    names = config.get("architectures") or [""]
    return str(names[0])


def _from_hub(model_id: str, revision: str | None) -> str:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return hf_hub_download(model_id, "config.json", revision=revision)
    except (OSError, ValueError, HfHubHTTPError, HFValidationError):
        return ""
