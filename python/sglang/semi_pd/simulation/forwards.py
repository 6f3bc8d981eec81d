# SPDX-License-Identifier: Apache-2.0
"""Which prompts one forward computes: prefill's rule and SGLang's, for models of them.

Prefill's is the code that serves (``workers/prefill_steps.py``) with what SGLang's
``PrefillAdder`` makes of it; SGLang's is told again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from sglang.semi_pd.workers.prefill_steps import ALONE, STEP, PrefillSteps, must_wait

SGLANG_CHUNK = 8192
"""``--chunked-prefill-size`` of SGLang on a Hopper, if none is given."""
LOOKED_AT = 128
"""Of the prompts that wait, a model looks at so many; hardly more ever share one."""


class Forward(Protocol):
    """A rule by which forwards are filled."""

    def __call__(self, left: Sequence[int], *, is_begun: bool) -> list[tuple[int, int]]:
        """What the next forward computes, as (place in ``left``, tokens), in order.

        Args:
            left: tokens of each prompt that waits, in their order.
            is_begun: some of the first one has been computed.
        """


def as_prefill(chunk: int | None = None) -> Forward:
    """Return the rule of the prefill worker.

    Args:
        chunk: ``--chunked-prefill-size``; None if the operator gave none.
    """
    is_given = chunk is not None
    steps = PrefillSteps(chunk or ALONE * STEP, 1, is_given=is_given)

    def forward(left: Sequence[int], *, is_begun: bool) -> list[tuple[int, int]]:
        step = steps.step(left[0] if is_begun else 0, left[1:] if is_begun else left)
        if not is_begun:
            return _fill([], range(len(left)), left, step.tokens, is_under_way=False)
        joining = [place + 1 for place in sorted(step.joining)]
        is_under_way = step.under_way < left[0]
        first = [(0, step.under_way)]
        return _fill(first, joining, left, step.tokens, is_under_way=is_under_way)

    return forward


def _fill(
    taken: list[tuple[int, int]],
    places: Sequence[int],
    left: Sequence[int],
    tokens: int,
    *,
    is_under_way: bool,
) -> list[tuple[int, int]]:
    filled = sum(part for _, part in taken)
    for place in places:
        room = tokens - filled
        if not room or must_wait(left[place], room, filled, is_under_way=is_under_way):
            break
        taken.append((place, min(left[place], room)))
        filled += taken[-1][1]
    return taken


def as_sglang(chunk: int | None = None) -> Forward:
    """Return SGLang's rule: fill a forward; who does not fit in is begun.

    Args:
        chunk: ``--chunked-prefill-size``; None if the operator gave none.
    """
    size = chunk or SGLANG_CHUNK

    def forward(left: Sequence[int], *, is_begun: bool) -> list[tuple[int, int]]:
        del is_begun  # it is first in any case
        taken, room = [], size
        for place, tokens in enumerate(left):
            if not room:
                break
            taken.append((place, min(tokens, room)))
            room -= taken[-1][1]
        return taken

    return forward


RULES: Mapping[str, Callable[[int | None], Forward]] = MappingProxyType(
    {"prefill": as_prefill, "sglang": as_sglang}
)
"""By name, of ``--chunked-prefill-size``."""
