# SPDX-License-Identifier: Apache-2.0
"""A discrete-event model of one instance: a queue, a prefill and a decode worker.

Each worker runs one step after another. A prefill step computes the prompts that the
prefill worker would take (``forwards.py``). A decode step gives one token to every
request in it. How long a step takes depends on the worker's cap and on whether the
other worker is busy as it begins. KV cache for prompt and output is set aside when a
prompt starts.

Both schedulers are one step ahead of the GPU, as SGLang's overlap makes them: as a step
begins, the next one is formed and launched behind it. So

- a prompt that arrives during a prefill step may find the next one formed without it;
- a prompt that is done has its first token, and is taken into decode's batch, when the
  running decode step ends; the step that begins then was formed without it, so its
  second token comes two steps after the first;
- what has ended is in one more decode step, for nothing.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass
from itertools import islice

import numpy as np
from sglang.semi_pd.simulation.forwards import LOOKED_AT, RULES
from sglang.semi_pd.simulation.simulator_coefficients import SimulatorCoefficients
from sglang.semi_pd.simulation.trace import Trace
from sglang.semi_pd.sm_allocation import SMAllocation

_NEVER = math.inf


@dataclass(slots=True)
class _Batch:
    """Requests in a decode step, or by how many they change, and their KV tokens."""

    requests: int = 0
    kv_tokens: int = 0

    def add(self, other: _Batch) -> None:
        self.requests += other.requests
        self.kv_tokens += other.kv_tokens


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
        self.coefficients = coefficients
        self._factors = coefficients.factors(allocation)
        self._arrival_s: list[float] = trace.arrival_s.tolist()
        self._input: list[int] = trace.input_length.tolist()
        self._output: list[int] = trace.output_length.tolist()
        self._next_arrival = 0

        self._forward = RULES[coefficients.forward_rule](coefficients.chunk_tokens)
        self._queue: deque[int] = deque()
        self._chunk: list[tuple[int, int]] = []
        self._chunk_ahead: list[tuple[int, int]] = []
        self._prefilled = [0] * len(trace)
        self._prefill_ends_s = _NEVER

        self._handed_over: deque[int] = deque()
        self._finishing: list[tuple[int, int]] = []
        self.step_ends_s: list[float] = []
        self._decode_ends_s = _NEVER
        self._batch = _Batch()
        self._ended = _Batch()
        self._change_ahead = _Batch()
        self.free_kv_tokens = coefficients.kv_capacity_tokens

        self.prefill_busy_s = 0.0
        self.decode_busy_s = 0.0
        self.first_token_s = np.full(len(trace), np.nan)
        self.completion_s = np.full(len(trace), np.nan)
        self.streams_at_first_token = np.zeros(len(trace), dtype=np.int64)
        self.first_step = np.zeros(len(trace), dtype=np.int64)
        self._decoding: set[int] = set()
        self.first_token_order: list[int] = []
        self.completion_order: list[int] = []

    @property
    def queue_length(self) -> int:
        """Prompts that have arrived and whose last chunk has not begun."""
        return len(self._queue)

    def tokens_so_far(self, index: int) -> int:
        """Tokens that a request has; 1 until its first decode step has ended."""
        steps = len(self.step_ends_s) - int(self.first_step[index])
        return 1 + max(0, steps) if index in self._decoding else 1

    def set_allocation(self, allocation: SMAllocation) -> None:
        """Use another split from each worker's next step on."""
        self.allocation = allocation
        self._factors = self.coefficients.factors(allocation)

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

    def _enqueue_arrivals(self, now: float) -> None:
        arrival_s, index = self._arrival_s, self._next_arrival
        while index < len(arrival_s) and arrival_s[index] <= now:
            self._queue.append(index)
            index += 1
        self._next_arrival = index

    def _start_prefill_step(self, now: float) -> None:
        """Begin what was formed, and form what comes behind it."""
        self._enqueue_arrivals(now)
        self._chunk = self._chunk_ahead or self._form_chunk()
        if not self._chunk:
            return
        work_s = sum(self._prefill_work_s(*part) for part in self._chunk)
        for index, tokens in self._chunk:
            self._prefilled[index] += tokens
            if self._prefilled[index] == self._input[index]:
                self._queue.remove(index)
        is_beside = self._decode_ends_s != _NEVER or bool(self._handed_over)
        factors = self._factors
        factor = factors.prefill_beside_decode if is_beside else factors.prefill_alone
        took_s = self.coefficients.prefill_step_s + work_s * factor
        self.prefill_busy_s += took_s
        self._prefill_ends_s = now + took_s
        self._chunk_ahead = self._form_chunk()

    def _form_chunk(self) -> list[tuple[int, int]]:
        """The next step's prompts and tokens, as far as the KV cache allows."""
        waiting = list(islice(self._queue, LOOKED_AT))
        if not waiting:
            return []
        left = [self._input[index] - self._prefilled[index] for index in waiting]
        is_begun = self._prefilled[waiting[0]] > 0
        chunk = []
        for place, tokens in self._forward(left, is_begun=is_begun):
            index = waiting[place]
            if not self._prefilled[index] and not self._reserve_kv(index):
                break
            chunk.append((index, tokens))
        return chunk

    def _prefill_work_s(self, index: int, tokens: int) -> float:
        """A prompt's part of a step on the whole GPU."""
        costs = self.coefficients
        context = self._prefilled[index] + tokens / 2
        per_token_s = costs.prefill_s_per_token
        per_token_s += costs.prefill_s_per_context_token * context
        return tokens * per_token_s

    def _reserve_kv(self, index: int) -> bool:
        """Set KV aside for a request; one too large waits for an empty cache."""
        needed = self._input[index] + self._output[index]
        is_empty = self.free_kv_tokens == self.coefficients.kv_capacity_tokens
        if needed > self.free_kv_tokens and not is_empty:
            return False
        self.free_kv_tokens -= needed
        return True

    def _end_prefill_step(self, now: float) -> None:
        for index, _ in self._chunk:
            if self._prefilled[index] < self._input[index]:
                continue
            if self._output[index] == 1:
                self._first_token(index, now)
                self._complete(index, now)
            else:
                self._handed_over.append(index)
        self._chunk = []
        self._prefill_ends_s = _NEVER

    def _start_decode_step(self, now: float) -> None:
        """Begin the step that was formed, and form the one behind it."""
        costs, batch = self.coefficients, self._batch
        batch.add(self._change_ahead)
        joined = self._join(now)
        if batch.requests:
            self._change_ahead = self._ended
            self._change_ahead.add(joined)
        else:
            batch.add(joined)
            self._change_ahead = _Batch()
        self._ended = _Batch()
        if not batch.requests:
            return
        fixed_s = costs.decode_step_s + costs.decode_s_per_request * batch.requests
        kv_s = costs.decode_s_per_kv_token * batch.kv_tokens
        factors = self._factors
        if self._prefill_ends_s != _NEVER:
            took_s = fixed_s * factors.decode_beside_prefill
            took_s += kv_s * factors.decode_kv_beside_prefill
        else:
            took_s = (fixed_s + kv_s) * factors.decode_alone
        self.decode_busy_s += took_s
        self._decode_ends_s = now + took_s

    def _join(self, now: float) -> _Batch:
        """Give finished prompts their first token, as far as the batch has room."""
        step, running = len(self.step_ends_s), self._batch.requests
        if running:
            step += 1
        room = self.coefficients.max_decode_batch - running - self._ended.requests
        joined = _Batch()
        while self._handed_over and joined.requests < room:
            index = self._handed_over.popleft()
            self._first_token(index, now)
            self.first_step[index] = step
            self._decoding.add(index)
            last_step = step + self._output[index] - 2
            heapq.heappush(self._finishing, (last_step, index))
            joined.requests += 1
            joined.kv_tokens += self._input[index] + 1
        return joined

    def _end_decode_step(self, now: float) -> None:
        step = len(self.step_ends_s)
        self.step_ends_s.append(now)
        self._batch.kv_tokens += self._batch.requests
        finishing = self._finishing
        while finishing and finishing[0][0] <= step:
            index = heapq.heappop(finishing)[1]
            self._ended.requests -= 1
            # One more than it needed: it is in the step that begins now.
            self._ended.kv_tokens -= self._input[index] + self._output[index] + 1
            self._decoding.discard(index)
            self._complete(index, now)
        self._decode_ends_s = _NEVER

    def _first_token(self, index: int, now: float) -> None:
        self.first_token_s[index] = now
        self.streams_at_first_token[index] = self._batch.requests
        self.first_token_order.append(index)

    def _complete(self, index: int, now: float) -> None:
        self.completion_s[index] = now
        self.completion_order.append(index)
        self.free_kv_tokens += self._input[index] + self._output[index]
