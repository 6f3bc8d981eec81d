# SPDX-License-Identifier: Apache-2.0
"""Requests with every sampling parameter, made from what a plain answer looks like."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from client import Answer, Body
from workload import prompt

PROMPT = prompt(40, seed=77)
LENGTH = 24
EOS = 1
"""Token that ends an answer, in the tiny model's vocabulary."""

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "enum": ["Ada", "Bob"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}

Case = Callable[[Answer], Body]


def base_request() -> Body:
    """The request whose answer, the probe, the cases are made from."""
    return _greedy()


def _greedy(**sampling: Any) -> Body:
    parameters = {"temperature": 0, "max_new_tokens": LENGTH, **sampling}
    return {"input_ids": PROMPT, "sampling_params": parameters}


def _fixed(**sampling: Any) -> Case:
    return lambda probe: _greedy(**sampling)


def _piece(probe: Answer, start: int, length: int) -> str:
    """Part of the probe's text, to stop at."""
    text: str = probe["text"]
    return text[start : start + length]


def _token(probe: Answer, place: int) -> int:
    return int(probe["output_ids"][place])


GREEDY: dict[str, Case] = {
    "frequency_penalty": _fixed(frequency_penalty=0.7),
    "presence_penalty": _fixed(presence_penalty=0.9),
    "repetition_penalty": _fixed(repetition_penalty=1.3),
    "all penalties": _fixed(
        frequency_penalty=0.4, presence_penalty=0.3, repetition_penalty=1.1
    ),
    "logit_bias": _fixed(logit_bias={"17": 9.0, "300": -9.0}),
    "logit_bias forces one token": _fixed(logit_bias={"17": 500.0}),
    "ignore_eos": _fixed(ignore_eos=True),
    "eos is the first token": _fixed(logit_bias={str(EOS): 500.0}),
    "eos ignored": _fixed(logit_bias={str(EOS): 500.0}, ignore_eos=True),
    "min_new_tokens holds eos back": _fixed(
        logit_bias={str(EOS): 500.0}, min_new_tokens=6
    ),
    "skip_special_tokens off": _fixed(
        logit_bias={str(EOS): 500.0}, skip_special_tokens=False
    ),
    "max_new_tokens 0": _fixed(max_new_tokens=0),
    "max_new_tokens 1": _fixed(max_new_tokens=1),
    "max_new_tokens 2": _fixed(max_new_tokens=2),
    "top_k 1": _fixed(temperature=1.0, top_k=1),
    "stream_interval": _fixed(stream_interval=4),
    "n 3": _fixed(n=3),
    "regex": _fixed(regex="[0-9]{4}-[0-9]{2}-[0-9]{2}"),
    "regex of one character": _fixed(regex="[ab]"),
    "ebnf": _fixed(ebnf='root ::= "yes" | "no"'),
    "json_schema": _fixed(json_schema=json.dumps(SCHEMA), max_new_tokens=64),
    "stop string": lambda probe: _greedy(stop=_piece(probe, 12, 3)),
    "stop strings, kept": lambda probe: _greedy(
        stop=["§", _piece(probe, 9, 2)], no_stop_trim=True
    ),
    "stop string in the first token": lambda probe: _greedy(stop=_piece(probe, 0, 1)),
    "stop_token_ids": lambda probe: _greedy(stop_token_ids=[_token(probe, 7)]),
    "stop at the first token": lambda probe: _greedy(stop_token_ids=[_token(probe, 0)]),
    "stop_token_ids and min_new_tokens": lambda probe: _greedy(
        stop_token_ids=[_token(probe, 0)], min_new_tokens=5
    ),
    "stop_regex": lambda probe: _greedy(stop_regex="[aeiou][^aeiou]"),
    "text prompt": lambda probe: {
        "text": "The quick brown fox",
        "sampling_params": {"temperature": 0, "max_new_tokens": LENGTH},
    },
    "batch": lambda probe: {
        "input_ids": [prompt(n, seed=n) for n in (1, 700, 3, 64, 513)],
        "sampling_params": {"temperature": 0, "max_new_tokens": LENGTH},
    },
    "batch of texts with parameters of their own": lambda probe: {
        "text": ["In the morning", "def add(", '{"name":'],
        "sampling_params": [
            {"temperature": 0, "max_new_tokens": 5},
            {"temperature": 0, "max_new_tokens": 1},
            {"temperature": 0, "max_new_tokens": 12, "frequency_penalty": 0.5},
        ],
    },
    "batch and n 2": lambda probe: {
        "input_ids": [prompt(n, seed=n) for n in (5, 600)],
        "sampling_params": {"temperature": 0, "max_new_tokens": 8, "n": 2},
    },
    "text in logprobs": lambda probe: {
        **_greedy(max_new_tokens=4),
        "return_logprob": True,
        "return_text_in_logprobs": True,
        "top_logprobs_num": 2,
    },
    "prompt token ids returned": lambda probe: {
        **_greedy(max_new_tokens=4),
        "return_prompt_token_ids": True,
    },
}
"""Reproducible in plain SGLang: the same on every server."""

SAMPLED: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.8},
    "top_k": {"temperature": 1.2, "top_k": 8},
    "top_p": {"temperature": 1.0, "top_p": 0.6},
    "min_p": {"temperature": 1.0, "min_p": 0.2},
    "all": {"temperature": 0.9, "top_k": 20, "top_p": 0.8, "min_p": 0.05},
    "sampling_seed": {"temperature": 0.9, "sampling_seed": 7},
    "penalties": {"temperature": 0.9, "frequency_penalty": 0.5, "min_new_tokens": 4},
    "regex": {"temperature": 1.0, "regex": "[0-9]{4}-[0-9]{2}-[0-9]{2}"},
}
"""Drawn at random: reproducible only where plain SGLang is."""

REFUSED: dict[str, Body] = {
    "prompt longer than the context": {"input_ids": prompt(5000, seed=1)},
    "empty prompt": {"input_ids": []},
    "no prompt": {"sampling_params": {"max_new_tokens": 1}},
    "negative temperature": {"text": "a", "sampling_params": {"temperature": -1}},
    "top_p of 2": {"text": "a", "sampling_params": {"top_p": 2}},
    "negative max_new_tokens": {"text": "a", "sampling_params": {"max_new_tokens": -5}},
    "unknown parameter": {"text": "a", "sampling_params": {"colour": "red"}},
    "broken regex": {"text": "a", "sampling_params": {"regex": "[a"}},
    "broken json_schema": {"text": "a", "sampling_params": {"json_schema": "{"}},
    "prompt and answer longer than the context": {
        "input_ids": prompt(4000, seed=2),
        "sampling_params": {"temperature": 0, "max_new_tokens": 500},
    },
}
"""Bad input: answered as plain SGLang answers it, and survived."""
