# SPDX-License-Identifier: Apache-2.0
"""A discrete-event model of one instance: a queue, a prefill and a decode worker.

Each worker runs one step after another. A prefill step takes prompts first come, first
served, up to a number of tokens; a prompt whose last chunk is done has its first token
and joins decode's next step. A decode step gives one token to every request in it.
How long a step takes depends on the worker's cap and on whether the other worker is
busy as it begins. KV cache for prompt and output is set aside when a prompt starts.
"""

from __future__ import annotations

import heapq
import math
from collections import deque

import numpy as np
from sglang.semi_pd.simulation.simulator_coefficients import SimulatorCoefficients
from sglang.semi_pd.simulation.trace import Trace
from sglang.semi_pd.sm_allocation import SMAllocation

_NEVER = math.inf


class InstanceSimulator:
    """Serves a trace on one modelled instance.

    ``advance`` runs it to a moment; in between, ``set_allocation`` moves the split from
    the next steps on. Times per request are arrays that hold NaN until known.
    """

    def __init__(
        self,
        trace: Trace,
        coefficients: SimulatorCoefficients,
        allocation: SMAllocation,
    ) -> None:
        self.trace = trace
        self.allocation = allocation
        self._coefficients = coefficients
        self._factors = coefficients.factors(allocation)
        self._arrival_s: list[float] = trace.arrival_s.tolist()
        self._input: list[int] = trace.input_length.tolist()
        self._output: list[int] = trace.output_length.tolist()
        self._next_arrival = 0

        self._queue: deque[int] = deque()
        self._chunk: list[tuple[int, int]] = []
        self._prefilled = [0] * len(trace)
        self._prefill_ends_s = _NEVER

        self._handed_over: deque[int] = deque()
        self._finishing: list[tuple[int, int]] = []
        self._step_ends_s: list[float] = []
        self._decode_ends_s = _NEVER
        self._batch = 0
        self._batch_kv_tokens = 0
        self.free_kv_tokens = coefficients.kv_capacity_tokens

        self.prefill_busy_s = 0.0
        self.decode_busy_s = 0.0
        self.first_token_s = np.full(len(trace), np.nan)
        self.completion_s = np.full(len(trace), np.nan)
        self._first_step = np.zeros(len(trace), dtype=np.int64)
        self._decoding: set[int] = set()
        self.first_token_order: list[int] = []
        self.completion_order: list[int] = []

    @property
    def queue_length(self) -> int:
        """Prompts that have arrived and are not fully prefilled."""
        return len(self._queue)

    def tokens_so_far(self, index: int) -> int:
        """Tokens that a request has; 1 until its first decode step has ended."""
        steps = len(self._step_ends_s) - self._first_step[index]
        is_decoding = index in self._decoding
        return 1 + int(steps) if is_decoding else 1

    def set_allocation(self, allocation: SMAllocation) -> None:
        """Use another split from each worker's next step on."""
        self.allocation = allocation
        self._factors = self._coefficients.factors(allocation)

    def advance(self, until_s: float = _NEVER) -> None:
        """Run every step that ends by ``until_s``; by default serve everything."""
        while True:
            arrives_s = _NEVER
            if not self._chunk and self._next_arrival < len(self._arrival_s):
                arrives_s = self._arrival_s[self._next_arrival]
            now = min(arrives_s, self._prefill_ends_s, self._decode_ends_s)
            if now > until_s or now == _NEVER:
                break
            if now == self._decode_ends_s:
                self._end_decode_step(now)
            if now == self._prefill_ends_s:
                self._end_prefill_step(now)
            if not self._chunk:
                self._start_prefill_step(now)
            if self._decode_ends_s == _NEVER:
                self._start_decode_step(now)
        self._enqueue_arrivals(until_s)

    def worst_gap_s(self) -> np.ndarray:
        """Return each request's longest wait between two tokens; NaN without one."""
        ends_s = np.array(self._step_ends_s)
        gaps_s = np.full(len(self.trace), np.nan)
        done = np.flatnonzero(np.isfinite(self.completion_s))
        done = done[self.trace.output_length[done] > 1]
        if not len(done):
            return gaps_s
        first = self._first_step[done]
        gaps_s[done] = ends_s[first] - self.first_token_s[done]
        between_s = np.append(np.diff(ends_s), 0.0)
        last = first + self.trace.output_length[done] - 2
        many = last > first
        bounds = np.column_stack((first[many], last[many])).ravel()
        longest_s = np.maximum.reduceat(between_s, bounds)[::2]
        gaps_s[done[many]] = np.maximum(gaps_s[done[many]], longest_s)
        return gaps_s

    def _enqueue_arrivals(self, now: float) -> None:
        arrival_s, index = self._arrival_s, self._next_arrival
        while index < len(arrival_s) and arrival_s[index] <= now:
            self._queue.append(index)
            index += 1
        self._next_arrival = index

    def _start_prefill_step(self, now: float) -> None:
        """Fill one chunk from the queue, as far as the KV cache allows."""
        self._enqueue_arrivals(now)
        costs = self._coefficients
        budget, work_s = costs.chunk_tokens, 0.0
        for index in self._queue:
            before = self._prefilled[index]
            if before == 0 and not self._reserve_kv(index):
                break
            tokens = min(self._input[index] - before, budget)
            context = before + tokens / 2
            per_token_s = costs.prefill_s_per_token
            per_token_s += costs.prefill_s_per_context_token * context
            work_s += tokens * per_token_s
            self._chunk.append((index, tokens))
            budget -= tokens
            if budget == 0:
                break
        if not self._chunk:
            return
        is_beside = self._decode_ends_s != _NEVER or bool(self._handed_over)
        factors = self._factors
        factor = factors.prefill_beside_decode if is_beside else factors.prefill_alone
        took_s = (costs.prefill_step_s + work_s) * factor
        self.prefill_busy_s += took_s
        self._prefill_ends_s = now + took_s

    def _reserve_kv(self, index: int) -> bool:
        """Set KV aside for a request; one too large waits for an empty cache."""
        needed = self._input[index] + self._output[index]
        is_empty = self.free_kv_tokens == self._coefficients.kv_capacity_tokens
        if needed > self.free_kv_tokens and not is_empty:
            return False
        self.free_kv_tokens -= needed
        return True

    def _end_prefill_step(self, now: float) -> None:
        for index, tokens in self._chunk:
            self._prefilled[index] += tokens
            if self._prefilled[index] < self._input[index]:
                continue
            self._queue.popleft()
            self.first_token_s[index] = now
            self.first_token_order.append(index)
            if self._output[index] == 1:
                self._complete(index, now)
            else:
                self._handed_over.append(index)
        self._chunk = []
        self._prefill_ends_s = _NEVER

    def _start_decode_step(self, now: float) -> None:
        costs = self._coefficients
        step = len(self._step_ends_s)
        while self._handed_over and self._batch < costs.max_decode_batch:
            index = self._handed_over.popleft()
            self._first_step[index] = step
            self._decoding.add(index)
            last_step = step + self._output[index] - 2
            heapq.heappush(self._finishing, (last_step, index))
            self._batch += 1
            self._batch_kv_tokens += self._input[index] + 1
        if not self._batch:
            return
        work_s = costs.decode_step_s + costs.decode_s_per_request * self._batch
        work_s += costs.decode_s_per_kv_token * self._batch_kv_tokens
        factors = self._factors
        is_beside = self._prefill_ends_s != _NEVER
        factor = factors.decode_beside_prefill if is_beside else factors.decode_alone
        took_s = work_s * factor
        self.decode_busy_s += took_s
        self._decode_ends_s = now + took_s

    def _end_decode_step(self, now: float) -> None:
        step = len(self._step_ends_s)
        self._step_ends_s.append(now)
        self._batch_kv_tokens += self._batch
        finishing = self._finishing
        while finishing and finishing[0][0] <= step:
            index = heapq.heappop(finishing)[1]
            self._batch -= 1
            self._batch_kv_tokens -= self._input[index] + self._output[index]
            self._decoding.discard(index)
            self._complete(index, now)
        self._decode_ends_s = _NEVER

    def _complete(self, index: int, now: float) -> None:
        self.completion_s[index] = now
        self.completion_order.append(index)
        self.free_kv_tokens += self._input[index] + self._output[index]
