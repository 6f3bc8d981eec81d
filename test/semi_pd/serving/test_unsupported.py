# SPDX-License-Identifier: Apache-2.0
"""What Semi-PD cannot do yet it refuses, per request, in one line."""

from __future__ import annotations

import json

import pytest
from client import Body
from harness import Server

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("needs_semi_pd")]

UNSUPPORTED: dict[str, tuple[str, Body]] = {
    "LoRA": (
        "/generate",
        {"text": "a", "lora_path": "adapter", "sampling_params": {"max_new_tokens": 1}},
    ),
    "session": (
        "/generate",
        {
            "text": "a",
            "session_params": {"id": "s1"},
            "sampling_params": {"max_new_tokens": 1},
        },
    ),
    "hidden states": (
        "/generate",
        {
            "text": "a",
            "return_hidden_states": True,
            "sampling_params": {"max_new_tokens": 1},
        },
    ),
    "sampling mask": (
        "/generate",
        {
            "text": "a",
            "return_sampling_mask": True,
            "sampling_params": {"max_new_tokens": 1, "top_k": 5},
        },
    ),
    "input embeddings": (
        "/generate",
        {"input_embeds": [[0.5] * 64], "sampling_params": {"max_new_tokens": 1}},
    ),
    "embeddings": ("/v1/embeddings", {"model": "tiny", "input": "a"}),
    "encode": ("/encode", {"text": "a"}),
    "classify": ("/classify", {"text": "a"}),
    "open_session": ("/open_session", {"capacity_of_str_len": 1000}),
    "load_lora_adapter": (
        "/load_lora_adapter",
        {"lora_name": "a", "lora_path": "/nowhere"},
    ),
    "update_weights_from_disk": ("/update_weights_from_disk", {"model_path": "/no"}),
    "weights_checker": ("/weights_checker", {"action": "reset_tensors"}),
    "release_memory_occupation": ("/release_memory_occupation", {}),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported(semi_pd: Server, name: str) -> None:
    """What is not supported is refused in one clear line, and the server lives on."""
    path, body = UNSUPPORTED[name]
    reply = semi_pd.post(path, body, timeout_s=30)
    assert 400 <= reply.status_code < 500, f"{reply.status_code} {reply.text[:300]}"
    text = message(reply.text)
    assert text and "\n" not in text.strip() and "Traceback" not in text, text
    assert len(text) < 400, text
    semi_pd.generate(input_ids=[5, 6], max_new_tokens=2)


def message(text: str) -> str:
    """The sentence in an error reply, whatever its form."""
    try:
        body = json.loads(text)
    except ValueError:
        return text
    while isinstance(body, dict):
        body = body.get("error") or body.get("message") or body.get("detail") or ""
    return str(body)
