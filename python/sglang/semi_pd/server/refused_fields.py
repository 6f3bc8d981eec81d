# SPDX-License-Identifier: Apache-2.0
"""Fields of a request that Semi-PD cannot serve are refused before a worker sees them.

SGLang would name a flag or a variable with which they would be served wrongly.
"""

from __future__ import annotations

from typing import Any

_WHY = {
    "return_sampling_mask": "prefill does not pass its mask on to decode",
    "input_embeds": "a request that is put aside would lose its answer so far",
}


def check(obj: Any) -> None:
    """Look at a request that has arrived.

    Args:
        obj: SGLang's ``GenerateReqInput`` or ``EmbeddingReqInput``; of several prompts
            a field may have a list.

    Raises:
        ValueError: it asks for what is not served; SGLang answers 400 with it.
    """
    for field, why in _WHY.items():
        asked = getattr(obj, field, None)
        if any(asked) if isinstance(asked, list) else asked:
            raise ValueError(f"{field} is not supported with Semi-PD: {why}")
