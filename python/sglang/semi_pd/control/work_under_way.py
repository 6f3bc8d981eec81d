# SPDX-License-Identifier: Apache-2.0
"""What requests that are not done yet tell: the backlog of prompts, the pace of decode.

A latency is known when it is over, which is too late to act on: a TTFT after the
queue, a TPOT after hundreds of tokens. These figures change as soon as the load does.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sglang.semi_pd.slo_types import LatencySummary

# Over less time than this a request's pace is chance, and a wait no stall, seconds.
_LEAST_SPAN_S = 0.2


@dataclass(frozen=True, slots=True)
class RunningLook:
    """What has happened since the last look.

    Args:
        tpot: time per token of the requests that decode, milliseconds.
        prefill_duty: part of the time, 0 to 1, in which prompts waited.
    """

    tpot: LatencySummary
    prefill_duty: float


# A moment, seconds, and totals until then: time with prompts waiting, tokens that left.
_Checkpoint = tuple[float, float, int]


class PrefillBacklog:
    """How many prompt tokens wait, and for how much of the time any did.

    The time in which prompts wait is the time in which prefill works. So this time
    over the tokens that left is what a token costs, in light load and in overload
    alike, and needs no report of the worker.

    Not locked: its owner locks.

    Args:
        span_s: how far back ``over`` can look, seconds.
        cap: most checkpoints kept.
    """

    def __init__(self, span_s: float, cap: int) -> None:
        self._span_s = span_s
        self._checkpoints: deque[_Checkpoint] = deque(maxlen=cap)
        self._prompts = self.waiting_tokens = self._tokens = 0
        self._busy_s = self._busy_until_s = 0.0

    def arrived(self, now: float, tokens: int) -> None:
        """A prompt joined the queue."""
        if not self._prompts:
            self._busy_until_s = max(self._busy_until_s, now)
        self._prompts += 1
        self.waiting_tokens += tokens

    def left(self, now: float, tokens: int, *, is_served: bool) -> None:
        """A prompt got its first token, or was dropped."""
        self._pass_time(now)
        self._prompts -= 1
        self.waiting_tokens -= tokens
        if is_served:
            self._tokens += tokens
        checkpoints = self._checkpoints
        checkpoints.append((now, self._busy_s, self._tokens))
        oldest_s = now - self._span_s
        while checkpoints[0][0] < oldest_s:
            checkpoints.popleft()

    def over(self, start_s: float, now: float) -> tuple[float, float]:
        """Return the duty, 0 to 1, and seconds per token since ``start_s``; or NaN."""
        self._pass_time(now)
        first = next((c for c in self._checkpoints if c[0] >= start_s), None)
        if first is None or now <= first[0]:
            return math.nan, math.nan
        busy_s, tokens = self._busy_s - first[1], self._tokens - first[2]
        duty = min(1.0, busy_s / (now - first[0]))
        return duty, busy_s / tokens if tokens > 0 else math.nan

    def busy_s(self, now: float) -> float:
        """Return the time since the start in which any prompt waited."""
        self._pass_time(now)
        return self._busy_s

    def _pass_time(self, now: float) -> None:
        if self._prompts and now > self._busy_until_s:
            self._busy_s += now - self._busy_until_s
            self._busy_until_s = now


class DecodePace:
    """Time per token of running requests since the last look.

    Args:
        progress: tokens that a request has so far, None if it is unknown.
    """

    def __init__(self, progress: Callable[[str], int | None]) -> None:
        self._progress = progress
        self._seen: dict[str, tuple[float, int]] = {}

    def look(self, running: Iterable[tuple[str, float]], now: float) -> list[float]:
        """Return milliseconds per token of each (id, time of its first token)."""
        seen, self._seen = self._seen, {}
        paces_ms = []
        for request_id, first_token_s in running:
            tokens = self._progress(request_id)
            if tokens is None:
                continue
            before_s, before = seen.get(request_id, (first_token_s, 1))
            took_s = now - before_s
            if took_s < _LEAST_SPAN_S:
                self._seen[request_id] = (before_s, before)
                continue
            self._seen[request_id] = (now, tokens)
            paces_ms.append(1e3 * took_s / max(1, tokens - before))
        return paces_ms
