# SPDX-License-Identifier: Apache-2.0
"""A sliding window over what clients see: arrivals, first tokens, completions."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

import numpy as np
from sglang.semi_pd.control.arrival_turn import turned_at_s
from sglang.semi_pd.control.sliding_window import SlidingWindow, summarise
from sglang.semi_pd.control.work_under_way import (
    DecodePace,
    PrefillBacklog,
    RunningLook,
)
from sglang.semi_pd.slo_types import (
    PERCENTILES,
    MetricsSnapshot,
    SLOClass,
)

# When a request entered its present phase, seconds; whether its latency counts; its
# prompt tokens. A plain tuple: one is made for every event.
_Phase = tuple[float, bool, int]

# Rates of a window that has only begun are taken over at least this long, seconds.
_SHORTEST_SPAN_S = 1.0


class SemiPDMetricsCollector:
    """Turns request events into the windowed figures that the controller reads.

    It lives in the server's main process. One thread records, any thread reads. Each
    record costs O(1) amortised; memory is bounded by ``max_tracked_requests`` and
    ``max_samples``. Nothing a caller records raises: ids that are unknown, repeated or
    evicted are counted instead.

    TTFT = first token - arrival. TPOT = (completion - first token) / (output_length
    - 1); a request of one token has none.

    Args:
        window_size_seconds: how far back the figures look, seconds.
        clock: the time source, seconds; every method also takes ``now`` explicitly.
        max_tracked_requests: unfinished requests remembered; the oldest is evicted.
        max_samples: samples of each kind kept in the window; the oldest is dropped.
        progress: tokens that a running request has so far, None if it is unknown; for
            ``snapshot``'s ``running_tpot``. Called by ``look_at_running`` only.
    """

    def __init__(
        self,
        window_size_seconds: float = 30.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        max_tracked_requests: int = 65_536,
        max_samples: int = 32_768,
        progress: Callable[[str], int | None] | None = None,
    ) -> None:
        if not window_size_seconds > 0:
            raise ValueError(
                f"window_size_seconds must be positive, not {window_size_seconds!r}"
            )
        self.window_size_seconds = window_size_seconds
        self._clock = clock
        self._max_tracked = max_tracked_requests
        self._lock = threading.Lock()
        self._waiting: dict[str, _Phase] = {}
        self._decoding: dict[str, _Phase] = {}
        self._started_s: float | None = None

        def window() -> SlidingWindow:
            return SlidingWindow(window_size_seconds, max_samples)

        self._input_lengths, self._output_lengths = window(), window()
        self._first_tokens = window()
        self._ttft_ms, self._tpot_ms = window(), window()
        self._backlog = PrefillBacklog(window_size_seconds, max_samples)
        self._pace = DecodePace(progress) if progress is not None else None
        self._last_look = (-math.inf, 0.0)
        self._prefill_queue_length = 0
        self._decode_queue_length = 0
        self.unknown_ids = 0
        self.repeated_ids = 0
        self.evicted_ids = 0
        self.aborted_requests = 0

    def record_request_arrival(
        self,
        request_id: str,
        input_length: int = 0,
        *,
        slo_class: SLOClass = SLOClass.INTERACTIVE,
        now: float | None = None,
    ) -> None:
        """Note that a request reached the server with ``input_length`` tokens."""
        now = self._clock() if now is None else now
        with self._lock:
            if request_id in self._waiting or request_id in self._decoding:
                self.repeated_ids += 1
                return
            if self._started_s is None:
                self._started_s = now
            if len(self._waiting) + len(self._decoding) >= self._max_tracked:
                self._evict_oldest()
            is_interactive = slo_class is SLOClass.INTERACTIVE
            self._waiting[request_id] = (now, is_interactive, input_length)
            self._input_lengths.add(now, input_length)
            self._backlog.arrived(now, input_length)

    def record_first_token(self, request_id: str, *, now: float | None = None) -> None:
        """Note that the client got the first token of a request."""
        now = self._clock() if now is None else now
        with self._lock:
            phase = self._waiting.pop(request_id, None)
            if phase is None:
                self._count_stray(request_id)
                return
            arrived_s, is_interactive, input_length = phase
            self._decoding[request_id] = (now, is_interactive, input_length)
            self._first_tokens.add(now, 1.0)
            self._backlog.left(now, input_length, is_served=True)
            if is_interactive:
                self._ttft_ms.add(now, 1e3 * (now - arrived_s))

    def record_request_completion(
        self, request_id: str, output_length: int = 0, *, now: float | None = None
    ) -> None:
        """Note that a request ended after ``output_length`` tokens."""
        now = self._clock() if now is None else now
        with self._lock:
            phase = self._decoding.pop(request_id, None)
            if phase is None:
                self._count_stray(request_id)
                return
            self._output_lengths.add(now, output_length)
            first_token_s, is_interactive, _ = phase
            if is_interactive and output_length > 1:
                decode_ms = 1e3 * (now - first_token_s)
                self._tpot_ms.add(now, decode_ms / (output_length - 1))

    def record_abort(self, request_id: str, *, now: float | None = None) -> None:
        """Forget a request that will not complete; its latencies do not count."""
        now = self._clock() if now is None else now
        with self._lock:
            waiting = self._waiting.pop(request_id, None)
            decoding = self._decoding.pop(request_id, None)
            if waiting is None and decoding is None:
                self.unknown_ids += 1
                return
            self.aborted_requests += 1
            if waiting is not None:
                self._backlog.left(now, waiting[2], is_served=False)

    def set_queue_lengths(self, *, prefill: int, decode: int) -> None:
        """Store how many requests wait for each worker, as the workers report it."""
        with self._lock:
            self._prefill_queue_length = prefill
            self._decode_queue_length = decode

    def snapshot(
        self, *, now: float | None = None, since_s: float | None = None
    ) -> MetricsSnapshot:
        """Return the window that ends now as one value.

        Args:
            now: the window's end, seconds on the collector's clock.
            since_s: ignore what is older, so that a new split is not judged by the
                latencies of the old one.
        """
        now = self._clock() if now is None else now
        with self._lock:
            bounds = (now - self.window_size_seconds, self._started_s, since_s)
            start_s = max(bound for bound in bounds if bound is not None)
            windows = (
                self._input_lengths,
                self._first_tokens,
                self._output_lengths,
                self._ttft_ms,
                self._tpot_ms,
            )
            copies = [window.samples() for window in windows]
            duty, s_per_token = self._backlog.over(start_s, now)
            waiting_tokens = self._backlog.waiting_tokens
            prefill_queue_length = self._prefill_queue_length
            decode_queue_length = self._decode_queue_length
        inputs, first_tokens, outputs, ttft_ms, tpot_ms = (
            np.array([value for when, value in samples if when >= start_s], dtype=float)
            for samples in copies
        )
        span_s = max(now - start_s, min(_SHORTEST_SPAN_S, self.window_size_seconds))
        per_s = 1.0 / span_s
        return MetricsSnapshot(
            taken_at_s=now,
            window_s=span_s,
            ttft=summarise(ttft_ms),
            tpot=summarise(tpot_ms),
            arrival_rate=len(inputs) * per_s,
            first_token_rate=len(first_tokens) * per_s,
            request_throughput=len(outputs) * per_s,
            token_throughput=float(outputs.sum()) * per_s,
            mean_input_length=float(inputs.mean()) if len(inputs) else 0.0,
            mean_output_length=float(outputs.mean()) if len(outputs) else 0.0,
            prefill_queue_length=prefill_queue_length,
            decode_queue_length=decode_queue_length,
            waiting_prompt_tokens=waiting_tokens,
            prefill_duty=duty,
            prefill_s_per_token=s_per_token,
        )

    def arrivals_turned_at_s(
        self, start_s: float, *, now: float | None = None
    ) -> float:
        """Return since when prompts arrive as they do now, at the earliest ``start_s``.

        For ``snapshot``'s ``since_s``: a mean over a turn is a load that never was.
        """
        now = self._clock() if now is None else now
        with self._lock:
            arrivals, started_s = self._input_lengths.samples(), self._started_s
        bounds = (start_s, now - self.window_size_seconds, started_s)
        start_s = max(bound for bound in bounds if bound is not None)
        return turned_at_s(arrivals, start_s, now)

    def look_at_running(self, *, now: float | None = None) -> RunningLook:
        """Return the pace of decode, and prefill's duty, since the last such look.

        One caller only: each look is measured from the one before.
        """
        now = self._clock() if now is None else now
        with self._lock:
            decoding = list(self._decoding.items())
            busy_s = self._backlog.busy_s(now)
        before, self._last_look = self._last_look, (now, busy_s)
        span_s = now - before[0]
        duty = (busy_s - before[1]) / span_s if span_s > 0 else math.nan
        running = ((name, phase[0]) for name, phase in decoding if phase[1])
        paces_ms = self._pace.look(running, now) if self._pace is not None else []
        return RunningLook(summarise(np.array(paces_ms, dtype=float)), min(1.0, duty))

    def get_real_time_metrics(self) -> dict[str, float]:
        """Return the window's figures by name; a latency without samples reads 0.0."""
        snapshot = self.snapshot()
        metrics: dict[str, float] = {}
        for name, summary in (("ttft", snapshot.ttft), ("tpot", snapshot.tpot)):
            for percentile in PERCENTILES:
                value = summary.at(percentile) if summary.count else 0.0
                metrics[f"{name}_p{percentile}_ms"] = value
            metrics[f"{name}_samples"] = summary.count
        for name in (
            "arrival_rate",
            "request_throughput",
            "token_throughput",
            "mean_input_length",
            "mean_output_length",
            "prefill_queue_length",
            "decode_queue_length",
        ):
            metrics[name] = getattr(snapshot, name)
        return metrics | self._counters(snapshot.taken_at_s)

    def _counters(self, now: float) -> dict[str, float]:
        with self._lock:
            oldest = next(iter(self._waiting.values()), None)
            return {
                "oldest_waiting_ms": 1e3 * (now - oldest[0]) if oldest else 0.0,
                "waiting_requests": len(self._waiting),
                "decoding_requests": len(self._decoding),
                "unknown_ids": self.unknown_ids,
                "repeated_ids": self.repeated_ids,
                "evicted_ids": self.evicted_ids,
                "aborted_requests": self.aborted_requests,
            }

    def _evict_oldest(self) -> None:
        """Forget one request: the longest waiting, else the longest decoding."""
        requests = self._waiting or self._decoding
        phase = requests.pop(next(iter(requests)))
        if requests is self._waiting:
            self._backlog.left(phase[0], phase[2], is_served=False)
        self.evicted_ids += 1

    def _count_stray(self, request_id: str) -> None:
        """Count an event that is out of order (id in flight) or of an unknown id."""
        if request_id in self._waiting or request_id in self._decoding:
            self.repeated_ids += 1
        else:
            self.unknown_ids += 1
