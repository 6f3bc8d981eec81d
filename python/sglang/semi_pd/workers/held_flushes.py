# SPDX-License-Identifier: Apache-2.0
"""A flush of the cache waits for requests that have just ended.

Their clients have the last token; their pages are still on the way back from decode,
at the latest when its running forward ends. Upstream would refuse the flush. One that
comes with a timeout waits by itself, as long as that says.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.managers.io_struct import FlushCacheReqInput

PATIENCE = 1000
"""Iterations of the loop that a flush waits; counted, not timed, because all ranks have
to give up together."""


class HeldFlushes:
    """Flushes that came while something was lent."""

    def __init__(self) -> None:
        self._held: list[FlushCacheReqInput] = []
        self._patience = 0

    def __bool__(self) -> bool:
        return bool(self._held)

    def pass_on(self, messages: list[Any], *, is_lent: bool) -> list[Any]:
        """The messages of one iteration, without or with flushes.

        Args:
            is_lent: whether decode has something that it has not given back.
        """
        flushes = [
            one
            for one in messages
            if isinstance(one, FlushCacheReqInput) and not one.timeout_s
        ]
        if flushes and is_lent:
            self._held += flushes
            self._patience = PATIENCE
            messages = [one for one in messages if one not in flushes]
        self._patience -= 1
        if self._held and not (is_lent and self._patience > 0):
            messages = self._held + messages
            self._held = []
        return messages
