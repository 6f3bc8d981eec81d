# SPDX-License-Identifier: Apache-2.0
"""Token ids that the model does not have are refused before any worker sees them.

SGLang passes them on. On a GPU the lookup of one fails in a way that ends the process,
and both workers are replaced: every stream pauses for what one client has sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_VALIDATE = (
    "sglang.srt.managers.tokenizer_manager.TokenizerManager._validate_one_request"
)


def validate(original: Callable[..., None], manager: Any, obj: Any, ids: Any) -> None:
    """Around SGLang's look at a request.

    Raises:
        ValueError: it has token ids of its own that are out of range; SGLang answers
            400.
    """
    original(manager, obj, ids)
    if obj.input_ids is None or not manager.server_args.uses_semi_pd():
        return  # they are the tokenizer's own, or not our affair
    if ids is None or not len(ids):  # may be an array
        return
    most = manager.model_config.vocab_size - 1
    wrong = [extreme for extreme in (min(ids), max(ids)) if not 0 <= extreme <= most]
    if wrong:
        raise ValueError(
            f"input_ids contain {wrong[0]}: this model's token ids are 0 to {most}"
        )


HOOKS = {_VALIDATE: validate}
