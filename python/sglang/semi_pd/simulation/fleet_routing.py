# SPDX-License-Identifier: Apache-2.0
"""Which GPU of a fleet a request goes to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sglang.semi_pd.simulation.fleet_types import FleetTrace, Routing

# A conversation leaves its GPU when that one has this many times the least load.
_CROWDED = 2.0
_CROWDED_TOKENS = 16_384


class Router:
    """Chooses among some of the fleet's GPUs; loads are known at once and exactly.

    A GPU's load is the tokens of its unfinished requests, prompts and answers.

    Args:
        routing: the policy.
        places: the GPUs to choose from, a run of numbers.
        trace: the requests.
    """

    def __init__(
        self, routing: Routing, places: Sequence[int], trace: FleetTrace
    ) -> None:
        self._routing = routing
        self._first, self._count = places[0], len(places)
        self._load = np.zeros(self._count)
        self._turn = 0
        requests = trace.requests
        self._size = (requests.input_length + requests.output_length).tolist()
        self._session = trace.session.tolist()
        self._shared = trace.shared_tokens.tolist()
        self._home: dict[int, int] = {}
        self._place = [-1] * len(trace)

    def choose(self, index: int) -> tuple[int, int]:
        """Return the GPU for a request, and its prompt tokens that are cached there."""
        place = self._pick(index)
        self._place[index] = place
        if self._routing is not Routing.ROUND_ROBIN:
            self._load[place] += self._size[index]
        session = self._session[index]
        cached = 0
        if session >= 0:
            cached = self._shared[index] if self._home.get(session) == place else 0
            self._home[session] = place
        return self._first + place, cached

    def ended(self, index: int) -> None:
        """A request's work at its GPU is done."""
        if self._routing is not Routing.ROUND_ROBIN:
            self._load[self._place[index]] -= self._size[index]

    def _pick(self, index: int) -> int:
        if self._routing is Routing.ROUND_ROBIN:
            self._turn += 1
            return (self._turn - 1) % self._count
        load = self._load
        least = int(load.argmin())
        if self._routing is Routing.CACHE_AWARE:
            home = self._home.get(self._session[index])
            if home is not None and load[home] <= max(
                _CROWDED_TOKENS, _CROWDED * load[least]
            ):
                return home
        return least
