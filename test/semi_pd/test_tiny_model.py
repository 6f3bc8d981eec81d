# SPDX-License-Identifier: Apache-2.0
"""The generated model: complete, reproducible, with a working tokenizer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from safetensors.numpy import load_file
from tokenizers import Tokenizer


def remake(repository: Path, out: Path, *options: str) -> None:
    script = repository / "scripts" / "make_tiny_model.py"
    subprocess.run([sys.executable, str(script), str(out), *options], check=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_same_seed_same_bytes(
    tiny_model: Path, repository: Path, tmp_path: Path
) -> None:
    remake(repository, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tiny_model)


def test_other_seed_other_weights_same_tokenizer(
    tiny_model: Path, repository: Path, tmp_path: Path
) -> None:
    remake(repository, tmp_path / "other", "--seed", "1")
    first, other = contents(tiny_model), contents(tmp_path / "other")
    assert first["model.safetensors"] != other["model.safetensors"]
    assert first["tokenizer.json"] == other["tokenizer.json"]


def test_weights_have_the_shapes_of_the_config(tiny_model: Path) -> None:
    model = tiny_model
    config = json.loads((model / "config.json").read_text())
    weights = load_file(model / "model.safetensors")
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    kv_size = config["num_key_value_heads"] * config["head_dim"]
    assert weights["model.embed_tokens.weight"].shape == (vocabulary, hidden)
    assert weights["lm_head.weight"].shape == (vocabulary, hidden)
    for layer in range(config["num_hidden_layers"]):
        key = weights[f"model.layers.{layer}.self_attn.k_proj.weight"]
        assert key.shape == (kv_size, hidden)
    assert not any(name.endswith("_proj.bias") for name in weights)


def test_other_families_have_their_own_weights(other_tiny_model: Path) -> None:
    config = json.loads((other_tiny_model / "config.json").read_text())
    names = load_file(other_tiny_model / "model.safetensors").keys()
    kind = config["model_type"]
    has_bias = any(name.endswith("_proj.bias") for name in names)
    has_experts = any(".mlp.experts." in name for name in names)
    has_latent = any("kv_a_proj_with_mqa" in name for name in names)
    assert has_bias == kind.startswith("qwen2")
    assert has_experts == (kind != "qwen2")
    assert has_latent == (kind == "deepseek_v2")


def test_tokenizer_fits_the_model_and_keeps_text(other_tiny_model: Path) -> None:
    model = other_tiny_model
    config = json.loads((model / "config.json").read_text())
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == config["vocab_size"]
    for text in ("Hello, world!\n", '{"a": [1, 2]}', "naïve 你好"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_end_of_text_is_never_the_likeliest_token(other_tiny_model: Path) -> None:
    model = other_tiny_model
    config = json.loads((model / "config.json").read_text())
    head = load_file(model / "model.safetensors")["lm_head.weight"]
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert not head[config[name]].any()
