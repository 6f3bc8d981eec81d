# SPDX-License-Identifier: Apache-2.0
"""What a fleet is asked to serve, and what it is made of."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from sglang.semi_pd.errors import ConfigError
from sglang.semi_pd.simulation.trace import Trace
from sglang.semi_pd.sm_allocation import SMAllocation

MOST_GPUS = 10_000


class Scheme(str, Enum):
    """What a GPU does.

    ``SEMI_PD``: prefill and decode side by side. ``PLAIN``: they take turns, prompts
    first, as in SGLang by default. ``DISAGGREGATED``: x GPUs prefill, y decode, and
    the KV cache of every prompt travels from one to the other.
    """

    SEMI_PD = "semi-pd"
    PLAIN = "plain"
    DISAGGREGATED = "xpyd"


class Routing(str, Enum):
    """Which GPU a request goes to."""

    ROUND_ROBIN = "round-robin"
    LEAST_LOADED = "least-loaded"
    CACHE_AWARE = "cache-aware"


@dataclass(frozen=True, slots=True)
class Deployment:
    """A fleet.

    Args:
        scheme: what its GPUs do.
        gpus: how many there are, at most ``MOST_GPUS``.
        split: Semi-PD's split of each GPU.
        prefill_gpus: with ``DISAGGREGATED``, how many of them prefill.
        routing: where requests go.
        kv_bytes_per_token: KV cache of one token, all layers, bytes.
        transfer_bytes_per_s: KV transfer between two GPUs, bytes per second.
        transfer_latency_s: before the first byte, seconds.
    """

    scheme: Scheme
    gpus: int
    split: SMAllocation | None = None
    prefill_gpus: int = 0
    routing: Routing = Routing.LEAST_LOADED
    kv_bytes_per_token: int = 131_072
    transfer_bytes_per_s: float = 40e9
    transfer_latency_s: float = 0.002

    def __post_init__(self) -> None:
        if not 1 <= self.gpus <= MOST_GPUS:
            raise ConfigError(
                f"{self.gpus} GPUs are refused",
                why=f"a fleet has 1 to {MOST_GPUS}",
                mend="give --gpus in that range",
            )
        has_two_kinds = self.scheme is Scheme.DISAGGREGATED
        if has_two_kinds and not 1 <= self.prefill_gpus < self.gpus:
            raise ConfigError(
                f"{self.prefill_gpus} prefill GPUs of {self.gpus} are refused",
                why="both phases need at least one",
                mend="give --prefill-gpus from 1 to one less than --gpus",
            )

    @property
    def name(self) -> str:
        """Short name for tables."""
        if self.scheme is Scheme.DISAGGREGATED:
            return f"{self.prefill_gpus}P{self.gpus - self.prefill_gpus}D"
        return f"{self.scheme.value} {self.split}" if self.split else self.scheme.value

    @property
    def decode_routing(self) -> Routing:
        """How decode GPUs are chosen: by load, unless in turn was asked for."""
        is_in_turn = self.routing is Routing.ROUND_ROBIN
        return Routing.ROUND_ROBIN if is_in_turn else Routing.LEAST_LOADED

    def places(self) -> tuple[range, range]:
        """Return the GPUs that take prompts, and those that decode."""
        if self.scheme is Scheme.DISAGGREGATED:
            return range(self.prefill_gpus), range(self.prefill_gpus, self.gpus)
        return range(self.gpus), range(self.gpus)

    def transfer_s(self, tokens: int) -> float:
        """Return how long a prompt's KV cache travels, seconds."""
        return (
            self.transfer_latency_s
            + tokens * self.kv_bytes_per_token / self.transfer_bytes_per_s
        )


@dataclass(frozen=True, slots=True)
class FleetTrace:
    """Requests, and which of them continue one another.

    Args:
        requests: arrivals and lengths.
        session: conversation of each request; -1 for none.
        shared_tokens: leading prompt tokens that the conversation's previous turn left
            in a cache.
    """

    requests: Trace
    session: np.ndarray
    shared_tokens: np.ndarray

    def __len__(self) -> int:
        return len(self.requests)

    @classmethod
    def without_sessions(cls, requests: Trace) -> FleetTrace:
        """Return requests that have nothing in common."""
        count = len(requests)
        return cls(requests, np.full(count, -1), np.zeros(count, dtype=np.int64))

    @classmethod
    def with_turns(cls, requests: Trace, turns: int, *, seed: int = 0) -> FleetTrace:
        """Make conversations of ``turns`` of the requests, dealt out at random.

        A turn's prompt is what was said before and its own drawn prompt.
        """
        count = len(requests)
        sessions = max(1, count // turns)
        session = np.random.default_rng(seed).integers(0, sessions, count)
        inputs, shared = requests.input_length.copy(), np.zeros(count, dtype=np.int64)
        said = [0] * sessions
        lengths = zip(
            session.tolist(),
            requests.input_length.tolist(),
            requests.output_length.tolist(),
            strict=True,
        )
        for index, (one, new, answer) in enumerate(lengths):
            shared[index] = said[one]
            inputs[index] = said[one] + new
            said[one] += new + answer
        longer = Trace(requests.arrival_s, inputs, requests.output_length)
        return cls(longer, session, shared)
