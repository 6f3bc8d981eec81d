# SPDX-License-Identifier: Apache-2.0
"""A discrete-event model of up to 10,000 GPUs, quick enough for a million requests.

``simulator.py`` plays every step of one instance. Here a GPU has events only where its
load changes: a prompt is done, a request joins or leaves. In between every running
request gains tokens at one pace, which the calibrated step time gives; so a request is
over when its GPU's count of tokens per request has grown by its output. That is three
events per request, and one more for each further forward that a prompt needs.
"""

from __future__ import annotations

import heapq
from collections import deque
from itertools import islice

import numpy as np
from sglang.semi_pd.simulation.fleet_routing import Router
from sglang.semi_pd.simulation.fleet_types import Deployment, FleetTrace, Scheme
from sglang.semi_pd.simulation.forwards import LOOKED_AT, RULES
from sglang.semi_pd.simulation.simulator_coefficients import SimulatorCoefficients
from sglang.semi_pd.sm_allocation import UNPARTITIONED

_CHUNK_ENDS, _REQUEST_ENDS, _KV_ARRIVES = range(3)
_Event = tuple[float, int, int, int]


class _GPU:
    """One GPU's queue of prompts and its running batch."""

    __slots__ = (
        "chunk",
        "ends",
        "free_kv",
        "index",
        "is_begun",
        "kv_tokens",
        "pace",
        "prompts",
        "ready",
        "running",
        "tokens",
        "updated_s",
        "version",
    )

    def __init__(self, index: int, free_kv: int) -> None:
        self.index = index
        self.free_kv = free_kv
        self.prompts: deque[int] = deque()
        self.is_begun = False  # some of the first prompt has been computed
        self.chunk: list[int] = []
        self.ready: deque[int] = deque()
        self.ends: list[tuple[float, int]] = []
        self.running = 0
        self.kv_tokens = 0.0
        self.tokens = self.pace = self.updated_s = 0.0
        self.version = 0


class FleetSimulator:
    """Serves a trace on a fleet; afterwards the times of every request are known.

    Args:
        trace: the requests.
        deployment: how many GPUs, and what each does.
        coefficients: step times of one GPU.
    """

    def __init__(
        self,
        trace: FleetTrace,
        deployment: Deployment,
        coefficients: SimulatorCoefficients,
    ) -> None:
        self._costs = coefficients
        self._deployment = deployment
        requests = len(trace)
        self._input = trace.requests.input_length.tolist()
        self._output = trace.requests.output_length.tolist()
        self._arrival_s = trace.requests.arrival_s.tolist()
        self._is_plain = deployment.scheme is Scheme.PLAIN
        self._is_disaggregated = deployment.scheme is Scheme.DISAGGREGATED
        split = UNPARTITIONED if deployment.split is None else deployment.split
        factors = coefficients.factors(split)
        whole = coefficients.factors(UNPARTITIONED)
        is_divided = deployment.scheme is Scheme.SEMI_PD
        self._prefill_alone = factors.prefill_alone if is_divided else 1.0
        self._prefill_beside = factors.prefill_beside_decode if is_divided else 1.0
        self._decode_alone = (factors if is_divided else whole).decode_alone
        self._decode_beside = factors.decode_beside_prefill if is_divided else 1.0
        capacity = coefficients.kv_capacity_tokens
        self._capacity = capacity
        self._gpus = [_GPU(index, capacity) for index in range(deployment.gpus)]
        takes_prompts, decodes = deployment.places()
        self._router = Router(deployment.routing, takes_prompts, trace)
        self._decoders = self._router
        if self._is_disaggregated:
            self._decoders = Router(deployment.decode_routing, decodes, trace)
        rule = coefficients.forward_rule if is_divided else "sglang"
        self._forward = RULES[rule](coefficients.chunk_tokens)
        self._left = [0] * requests
        self._events: list[_Event] = []
        self._streams = [0] * requests
        self.first_token_s = [float("nan")] * requests
        self.completion_s = [float("nan")] * requests
        self.prefill_busy_s = 0.0
        self.cached_tokens = 0

    def run(self) -> None:
        """Serve every request."""
        events, pop = self._events, heapq.heappop
        arrivals, index, requests = self._arrival_s, 0, len(self._arrival_s)
        handlers = (self._end_chunk, self._end_requests, self._receive)
        while index < requests or events:
            if index < requests and (not events or arrivals[index] <= events[0][0]):
                self._arrive(arrivals[index], index)
                index += 1
                continue
            now, kind, place, number = pop(events)
            handlers[kind](now, self._gpus[place], number)

    def _arrive(self, now: float, index: int) -> None:
        place, cached = self._router.choose(index)
        self.cached_tokens += cached
        self._left[index] = max(1, self._input[index] - cached)
        gpu = self._gpus[place]
        gpu.prompts.append(index)
        if gpu.chunk:
            return
        self._start_chunk(now, gpu)
        if gpu.chunk and gpu.running:
            self._change_pace(now, gpu)

    def _start_chunk(self, now: float, gpu: _GPU) -> None:
        """Begin the next forward, as far as the cache has room.

        The caller changes decode's pace.
        """
        waiting, work_s = list(islice(gpu.prompts, LOOKED_AT)), 0.0
        if not waiting:
            return
        left = [self._left[index] for index in waiting]
        for place, tokens in self._forward(left, is_begun=gpu.is_begun):
            index, is_new = waiting[place], place > 0 or not gpu.is_begun
            if is_new and not self._reserve(gpu, index):
                break
            gpu.chunk.append(index)
            work_s += self._work_s(index, tokens)
            self._left[index] -= tokens
        if not gpu.chunk:
            return
        gpu.is_begun = any(self._left[index] for index in gpu.chunk)
        is_beside = gpu.running > 0
        factor = self._prefill_beside if is_beside else self._prefill_alone
        took_s = self._costs.prefill_step_s + work_s * factor
        self.prefill_busy_s += took_s
        heapq.heappush(self._events, (now + took_s, _CHUNK_ENDS, gpu.index, 0))

    def _reserve(self, gpu: _GPU, index: int) -> bool:
        """Set KV aside; a request too large for the cache waits until it is empty."""
        needed = self._input[index]
        needed += 0 if self._is_disaggregated else self._output[index]
        if needed > gpu.free_kv and gpu.free_kv < self._capacity:
            return False
        gpu.free_kv -= needed
        return True

    def _work_s(self, index: int, tokens: int) -> float:
        """A prompt's time on the whole GPU, without the fixed part of its step."""
        costs = self._costs
        context = self._input[index] - self._left[index] + tokens / 2
        per_token_s = costs.prefill_s_per_token
        per_token_s += costs.prefill_s_per_context_token * context
        return tokens * per_token_s

    def _end_chunk(self, now: float, gpu: _GPU, _: int) -> None:
        chunk = [index for index in gpu.chunk if not self._left[index]]
        gpu.chunk = []
        for index in chunk:
            gpu.prompts.remove(index)
        if self._is_disaggregated:
            for index in chunk:
                self._router.ended(index)
                self._send(now, gpu, index)
        else:
            self._first_tokens(now, gpu, chunk)
            self._advance(now, gpu)
            self._join(gpu)
        self._start_chunk(now, gpu)
        self._change_pace(now, gpu)

    def _send(self, now: float, gpu: _GPU, index: int) -> None:
        """Move the prompt's KV to a decode GPU; the first token comes with it."""
        gpu.free_kv += self._input[index]
        place, _ = self._decoders.choose(index)
        arrives_s = now + self._deployment.transfer_s(self._input[index])
        heapq.heappush(self._events, (arrives_s, _KV_ARRIVES, place, index))

    def _receive(self, now: float, gpu: _GPU, index: int) -> None:
        self._first_tokens(now, gpu, [index])
        self._advance(now, gpu)
        self._join(gpu)
        self._change_pace(now, gpu)

    def _first_tokens(self, now: float, gpu: _GPU, indices: list[int]) -> None:
        """First tokens leave when a running step ends: on average after half of it."""
        leaves_s = now
        if gpu.pace and not self._is_plain:
            leaves_s += 0.5 / gpu.pace
        for index in indices:
            self.first_token_s[index] = leaves_s
            self._streams[index] = gpu.running
        gpu.ready.extend(indices)

    def _join(self, gpu: _GPU) -> None:
        """Let requests into the batch as far as it and the KV cache have room.

        They have nothing of the step that runs, nor of the next, already formed.
        """
        late = 1.5 if gpu.running and not self._is_plain else 0.0
        while gpu.ready and gpu.running < self._costs.max_decode_batch:
            index = gpu.ready[0]
            if self._is_disaggregated:
                needed = self._input[index] + self._output[index]
                if needed > gpu.free_kv and gpu.free_kv < self._capacity:
                    return
                gpu.free_kv -= needed
            gpu.ready.popleft()
            gpu.running += 1
            gpu.kv_tokens += self._input[index] - late
            ends_at = gpu.tokens + self._output[index] - 1 + late
            heapq.heappush(gpu.ends, (ends_at, index))

    def _end_requests(self, now: float, gpu: _GPU, version: int) -> None:
        if version != gpu.version:
            return
        self._advance(now, gpu)
        ends = gpu.ends
        while ends and ends[0][0] <= gpu.tokens + 1e-6:
            index = heapq.heappop(ends)[1]
            gpu.running -= 1
            gpu.kv_tokens -= self._input[index] + self._output[index] - 1
            gpu.free_kv += self._input[index] + self._output[index]
            self.completion_s[index] = now
            self._decoders.ended(index)
        self._join(gpu)
        if not gpu.chunk:
            self._start_chunk(now, gpu)
        self._change_pace(now, gpu)

    @staticmethod
    def _advance(now: float, gpu: _GPU) -> None:
        """Give every running request the tokens of the time that has passed."""
        gained = (now - gpu.updated_s) * gpu.pace
        gpu.tokens += gained
        gpu.kv_tokens += gained * gpu.running
        gpu.updated_s = now

    def _change_pace(self, now: float, gpu: _GPU) -> None:
        """Work out the step time anew, and when the next request ends."""
        self._advance(now, gpu)
        gpu.version += 1
        gpu.pace = 0.0
        is_beside = bool(gpu.chunk)
        if not gpu.running or (self._is_plain and is_beside):
            return
        costs = self._costs
        step_s = costs.decode_step_s + costs.decode_s_per_request * gpu.running
        step_s += costs.decode_s_per_kv_token * max(0.0, gpu.kv_tokens)
        step_s *= self._decode_beside if is_beside else self._decode_alone
        gpu.pace = 1.0 / step_s
        left = max(0.0, gpu.ends[0][0] - gpu.tokens)
        ends_s = now + left * step_s
        heapq.heappush(self._events, (ends_s, _REQUEST_ENDS, gpu.index, gpu.version))

    def latencies_s(self) -> tuple[np.ndarray, np.ndarray]:
        """Return TTFT and TPOT of each request, seconds; TPOT is NaN for one token."""
        arrival = np.array(self._arrival_s)
        first, end = np.array(self.first_token_s), np.array(self.completion_s)
        steps = np.array(self._output) - 1
        ttft_s = first - arrival + self._costs.request_overhead_s
        ttft_s += self._costs.transport_s_per_stream * np.array(self._streams)
        tpot_s = np.full(len(steps), np.nan)
        np.divide(end - first, steps, out=tpot_s, where=steps > 0)
        return ttft_s, tpot_s
