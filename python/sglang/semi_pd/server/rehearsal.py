# SPDX-License-Identifier: Apache-2.0
"""A standby pair answers a few requests of our own before it answers anybody's.

What a process does for the first time takes long: kernels are loaded, buffers made,
graphs brought to the GPU. Clients would wait for it in the switch. The requests take
the whole way, through prefill, handover, decode and detokenizer, so they also show that
it is open. There are as many as will be running, and they draw their tokens as those
do: a way of sampling that nobody uses may take minutes to compile.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

PREFIX = f"SEMI_PD_REHEARSAL_{secrets.token_hex(8)}"
"""No client can have it."""
TOKENS = 8
LONG_PROMPT = 1283
"""Longer than any prefill that is captured as a graph; Triton makes other kernels for
multiples of 16."""
SHORT_PROMPT = 16
ROOM = 3
"""So many times what it needs is freed: the workers that serve lease of it too, for
their next batches."""
PAUSE_S = 0.001
"""Between two requests: answers to clients pass through the same event loop."""

GREEDY = {"temperature": 0.0}
COPIED = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
)


def is_ours(message: Any) -> bool:
    """Whether a message to workers is about a request of a rehearsal."""
    return isinstance(getattr(message, "rid", None), str) and message.rid.startswith(
        PREFIX
    )


class Rehearsal:
    """The requests to one standby; lives on the main process's event loop.

    Args:
        generation: of the pair.
        running: requests of clients that decode runs.
    """

    def __init__(
        self,
        manager: TokenizerManager,
        generation: int,
        running: Iterable[TokenizedGenerateReqInput],
    ) -> None:
        self._manager, self._generation = manager, generation
        self._requests = [(self._long(), GREEDY), (SHORT_PROMPT, GREEDY)]
        self._requests += [(SHORT_PROMPT, _sampling_of(one)) for one in running]

    def pages(self, page_size: int) -> int:
        """What must be free of the KV cache."""
        needed = sum(-(-(n + TOKENS) // page_size) for n, _ in self._requests)
        return ROOM * needed

    async def run(self) -> None:
        """Return when every request has been answered."""
        asked = []
        try:
            for number, (length, sampling) in enumerate(self._requests):
                asking = self._ask(number, length, sampling)
                asked.append(asyncio.ensure_future(asking))
                await asyncio.sleep(PAUSE_S)
            await asyncio.gather(*asked)
        finally:
            for one in asked:
                one.cancel()

    def _long(self) -> int:
        args = self._manager.server_args
        chunk = args.chunked_prefill_size or 0
        most = [self._manager.context_len // 2, *([chunk] if chunk > 0 else [])]
        return min(LONG_PROMPT, *most)

    async def _ask(self, number: int, length: int, sampling: dict[str, Any]) -> None:
        # Here: to tell a rehearsal's requests from others needs nothing of SGLang.
        from sglang.srt.managers.io_struct import GenerateReqInput

        vocabulary = self._manager.model_config.vocab_size
        request = GenerateReqInput(
            rid=f"{PREFIX}_{self._generation}_{number}",
            input_ids=random.choices(range(vocabulary), k=length),
            sampling_params={**sampling, "max_new_tokens": TOKENS, "ignore_eos": True},
            extra_key=PREFIX,  # never anybody's prefix
            log_metrics=False,
        )
        async for _ in self._manager.generate_request(request):
            """Its text is nobody's."""


def _sampling_of(request: TokenizedGenerateReqInput) -> dict[str, Any]:
    return {name: getattr(request.sampling_params, name) for name in COPIED}
