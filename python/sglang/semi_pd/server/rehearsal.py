# SPDX-License-Identifier: Apache-2.0
"""A standby pair answers a few requests of our own before it answers anybody's.

What a process does for the first time takes long: kernels are loaded, buffers made,
graphs brought to the GPU. Clients would wait for it in the switch. The requests take
the whole way, through prefill, handover, decode and detokenizer, so they also show that
it is open; and they are as many as will be running, for batches of that size.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Any

from sglang.srt.managers.io_struct import GenerateReqInput

if TYPE_CHECKING:
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

logger = logging.getLogger(__name__)

PREFIX = "SEMI_PD_REHEARSAL"
TOKENS = 8
LONG_PROMPT = 2048
"""Longer than any prefill that is captured as a graph."""
SHORT_PROMPT = 16
GREEDY = {"temperature": 0.0, "max_new_tokens": TOKENS, "ignore_eos": True}
DRAWN = {**GREEDY, "temperature": 0.8, "top_p": 0.9, "top_k": 20}


def is_ours(message: Any) -> bool:
    """Whether a message to workers is about a request of a rehearsal."""
    return isinstance(getattr(message, "rid", None), str) and message.rid.startswith(
        PREFIX
    )


class Rehearsal:
    """The requests to one standby; lives on the main process's event loop.

    Args:
        generation: of the pair.
        running: requests of clients that are under way.
    """

    def __init__(
        self, manager: TokenizerManager, generation: int, running: int
    ) -> None:
        self._manager, self._generation = manager, generation
        self._lengths = [self._long(), *[SHORT_PROMPT] * max(1, running)]

    @property
    def tokens(self) -> int:
        """What it will have in the KV cache."""
        return sum(length + TOKENS for length in self._lengths)

    async def run(self) -> None:
        """Return when every request has been answered."""
        await asyncio.gather(
            *(
                self._ask(number, length, DRAWN if number == 1 else GREEDY)
                for number, length in enumerate(self._lengths)
            )
        )

    def _long(self) -> int:
        args = self._manager.server_args
        chunk = args.chunked_prefill_size or 0
        most = [self._manager.context_len // 2, *([chunk] if chunk > 0 else [])]
        return min(LONG_PROMPT, *most)

    async def _ask(self, number: int, length: int, sampling: dict[str, Any]) -> None:
        vocabulary = self._manager.model_config.vocab_size
        request = GenerateReqInput(
            rid=f"{PREFIX}_{self._generation}_{number}",
            input_ids=random.choices(range(vocabulary), k=length),
            sampling_params=dict(sampling),
            extra_key=PREFIX,  # never anybody's prefix
            log_metrics=False,
        )
        async for _ in self._manager.generate_request(request):
            """Its text is nobody's."""
