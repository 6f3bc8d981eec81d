# SPDX-License-Identifier: Apache-2.0
"""How many tokens of prompts one forward computes, and of which prompts.

In one process a forward is as large as decode can bear to wait for, and a long prompt
has all of it until it is done. Here only prompts wait, for each other. So a forward is
no larger than the GPU needs to be busy: the first token of a prompt waits for its own
tokens, not for those that came after it. And a long prompt shares each forward with
short ones that have come meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sglang.semi_pd.workers.worker_scheduler import WorkerScheduler
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache.base_prefix_cache import BasePrefixCache

STEP = 2048
"""Tokens of a forward where several prompts wait; hardly faster per token beyond it."""
ALONE = 2
"""A prompt of at most so many steps that nobody waits behind is not divided."""
LEAST_SHARE = 4
"""A long prompt has at least a quarter of each forward, or all of the next one; and at
least so much of a forward is filled before a prompt waits to be computed whole."""
LOOKED_UP = 8
"""So many long prompts that wait are looked up in the prefix cache: what is left of
them may be short."""


@dataclass(frozen=True, slots=True)
class Step:
    """What the next forward may compute.

    Attributes:
        tokens: of all its prompts.
        under_way: of those, for the prompt of which a part has been computed.
        joining: which of those that wait may be computed whole beside that one.
    """

    tokens: int
    under_way: int = 0
    joining: frozenset[int] = frozenset()

    def aside(self, waited: list[Req]) -> list[Req]:
        """Those of the ones that waited that may not join."""
        return [req for place, req in enumerate(waited) if place not in self.joining]

    def put_back(self, waited: list[Req], left: list[Req]) -> list[Req]:
        """Those that wait after it, in the order in which they waited before it.

        Args:
            left: of those that might join, who did not.
        """
        place = {id(req): number for number, req in enumerate(waited)}
        after = [*left, *self.aside(waited)]
        return sorted(after, key=lambda req: place.get(id(req), len(place)))


class PrefillSteps:
    """The size of forwards, in tokens.

    Args:
        chunk: ``--chunked-prefill-size``, or what SGLang takes for it.
        is_given: the operator chose it: then a forward is of that size.
        page_size: prompts are divided between pages only.
    """

    def __init__(self, chunk: int, page_size: int, *, is_given: bool) -> None:
        self._page_size = page_size
        self._alone = chunk if is_given else min(chunk, ALONE * STEP)
        self._most = chunk if is_given else min(chunk, STEP)
        self._owes_whole = False

    @classmethod
    def of(cls, scheduler: WorkerScheduler) -> PrefillSteps | None:
        """Of a scheduler as it was made; None if it does not divide prompts."""
        chunk: int | None = scheduler.chunked_prefill_size
        if chunk is None:
            return None
        given = scheduler.server_args._semi_pd_raw_fields["chunked_prefill_size"]
        return cls(chunk, scheduler.page_size, is_given=given is not None)

    @property
    def largest(self) -> int:
        """No forward computes more tokens than this."""
        return self._alone

    def next(
        self, under_way: Req | None, waiting: Sequence[Req], tree: BasePrefixCache
    ) -> Step:
        """The next forward.

        Args:
            under_way: the prompt of which a part has been computed.
            waiting: the others, in their order.
            tree: has beginnings of some of them.
        """
        if under_way is not None or len(waiting) == 1:
            long = [req for req in waiting if tokens_left(req) > self._room()]
            for req in long[:LOOKED_UP]:
                req.init_next_round_input(tree)
        left = tokens_left(under_way) if under_way is not None else 0
        return self.step(left, [tokens_left(req) for req in waiting])

    def step(self, under_way: int, waiting: Sequence[int]) -> Step:
        """As ``next``, of tokens that are to be computed."""
        if not under_way:
            self._owes_whole = False
            return Step(self._size(waiting))
        left = self._ceil(under_way)
        if not waiting:
            size = self._size([under_way])
            return Step(size, min(size, left))
        if left <= self._most:  # then there is none under way for those behind it
            return Step(self._most, left, frozenset(range(len(waiting))))
        if self._owes_whole:
            self._owes_whole = False
            return Step(self._most, self._most)
        room, first = self._room(), self._ceil(waiting[0])
        if room < first < self._most:
            self._owes_whole = True
            return Step(self._most, self._most - first, frozenset([0]))
        joining = set()
        for place, tokens in enumerate(waiting):
            if self._ceil(tokens) <= room:
                room -= self._ceil(tokens)
                joining.add(place)
        return Step(self._most, room + self._least(), frozenset(joining))

    def _room(self) -> int:
        """For others beside a prompt under way."""
        return self._most - self._least()

    def _least(self) -> int:
        return max(self._page_size, self._floor(self._most // LEAST_SHARE))

    def _size(self, prompts: Sequence[int]) -> int:
        is_alone = len(prompts) == 1 and prompts[0] <= self._alone
        return self._alone if is_alone else self._most

    def _ceil(self, tokens: int) -> int:
        return -(-tokens // self._page_size) * self._page_size

    def _floor(self, tokens: int) -> int:
        return tokens // self._page_size * self._page_size


def tokens_left(req: Req) -> int:
    """Of a prompt: those that are neither computed nor, as far as is known, cached."""
    return len(req.origin_input_ids) + len(req.output_ids) - len(req.prefix_indices)


def must_wait(needed: int, room: int, filled: int, *, is_under_way: bool) -> bool:
    """Whether a prompt that does not fit into a forward waits, rather than be divided.

    Args:
        needed: tokens of the prompt.
        room, filled: of the forward, that are free and that are taken.
        is_under_way: another prompt is divided already; upstream can have only one.
    """
    fits_later = needed <= room + filled <= LEAST_SHARE * filled
    return room < needed and (is_under_way or fits_later)
