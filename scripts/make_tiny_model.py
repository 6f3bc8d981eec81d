#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write a tiny but complete model, for trying out and testing without a download.

The same arguments give the same bytes. The weights are random, so the answers mean
nothing; they are scaled such that attention is selective and outweighs the current
token, which keeps greedy answers from falling into a short loop. Text is readable
because tokens that are not printable, and the special ones, are never the likeliest.

    python scripts/make_tiny_model.py /tmp/tiny-llama
    python scripts/make_tiny_model.py /tmp/tiny-qwen2 --arch qwen2 --seed 7
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tiny_layers import (
    ARCHITECTURES,
    HIDDEN,
    LAYERS,
    LOGIT_GAIN,
    MAX_POSITIONS,
    VOCAB_SIZE,
    WeightMaker,
    Weights,
    architecture,
    make_layer,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

BOS, EOS, PAD = "<s>", "</s>", "<pad>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '[' + message['role'] + ']\n' + message['content'] + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]\n' }}{% endif %}"
)

TRAINING_TEXT = """\
A server answers many people at once. Each of them sends a prompt and waits for the
first word; after that the words should come one by one, at an even pace. Reading the
prompt is heavy work and is done once. Writing the answer is light work and is done
again and again, one token at a time, until the answer is complete. When one machine
does both, a long prompt makes everybody else wait, and the even pace is lost.

So the two kinds of work are given to two processes. They share the same weights and
the same memory of what was said before, so nothing is copied when the first process
hands a request over to the second. How much of the machine each of them gets can be
changed while they run: more for reading when the queue of prompts grows, more for
writing when the pace of the answers falls behind.

The user asks a question and the assistant gives an answer. What is the weather like
today? How many trees are there in the garden? Where does the river meet the sea? The
quick brown fox jumps over the lazy dog. There were three of them, and then there was
only one. It was not the first time that something like this had happened, and it
would not be the last. In the morning the light came in through the open window, and
for a while nobody said anything at all.

{"name": "Ada", "age": 36, "city": "London", "tags": ["math", "code"], "active": true}
def add(left, right): return left + right    # 0 1 2 3 4 5 6 7 8 9 10 100 2024
"""


def make_tokenizer() -> Tokenizer:
    """A byte-level BPE tokenizer, trained on the text above."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_TEXT.splitlines(keepends=True), trainer)
    return tokenizer


def silent_tokens(tokenizer: Tokenizer) -> list[int]:
    """Ids that a greedy answer should not contain: special or not printable."""
    special = {BOS, EOS, PAD}
    return [
        token
        for text, token in tokenizer.get_vocab().items()
        if text in special or not _is_readable(tokenizer.decode([token]))
    ]


def _is_readable(text: str) -> bool:
    return text.isascii() and (text.isprintable() or text == "\n")


def make_weights(seed: int, silent: list[int], arch: str) -> Weights:
    """All weights of the model."""
    maker = WeightMaker(seed)
    head = maker.matrix(VOCAB_SIZE, HIDDEN, gain=LOGIT_GAIN)
    head[silent] = 0
    weights = {
        "model.embed_tokens.weight": maker.embedding(),
        "model.norm.weight": np.ones(HIDDEN, np.float32),
        "lm_head.weight": head,
    }
    for layer in range(LAYERS):
        weights |= make_layer(maker, arch, layer)
    return weights


def token_ids(tokenizer: Tokenizer) -> dict[str, object]:
    """The special tokens' ids, as both configuration files name them."""
    return {
        "bos_token_id": tokenizer.token_to_id(BOS),
        "eos_token_id": tokenizer.token_to_id(EOS),
        "pad_token_id": tokenizer.token_to_id(PAD),
    }


def tokenizer_config() -> dict[str, object]:
    """The content of ``tokenizer_config.json``."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "unk_token": PAD,  # or Qwen2's class adds one, beyond the vocabulary
        "model_max_length": MAX_POSITIONS,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def make_model(out: Path, *, arch: str = "llama", seed: int = 0) -> None:
    """Write the model's folder; files already there are replaced."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    weights = make_weights(seed, silent_tokens(tokenizer), arch)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(out / "tokenizer.json"))
    _write_json(out / "tokenizer_config.json", tokenizer_config())
    _write_json(out / "generation_config.json", token_ids(tokenizer))
    _write_json(out / "config.json", {**architecture(arch), **token_ids(tokenizer)})


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--arch", choices=ARCHITECTURES, default="llama")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    options = parser.parse_args()
    make_model(options.out, arch=options.arch, seed=options.seed)


if __name__ == "__main__":
    main()
