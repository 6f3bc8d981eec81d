# SPDX-License-Identifier: Apache-2.0
"""How often to look and how long to rest after a move, from what a move costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sglang.semi_pd.slo_types import ControlLimits

_COOLDOWN_S = 15.0  # where only latencies that are over tell how a split does
_LEAST_INTERVAL_S = 1.0
_CHEAP_S = 0.01


@dataclass(frozen=True, slots=True)
class ControlPace:
    """The controller's rhythm, seconds.

    Args:
        interval_s: time between two looks.
        window_s: how far back a decision looks.
        cooldown_s: least time between two moves.
        is_cheap: whether a wrong move costs next to nothing, for it can be undone at
            the next look: then neither proof nor much promise is asked of one.
    """

    interval_s: float
    window_s: float
    cooldown_s: float
    is_cheap: bool = False

    @classmethod
    def for_move(
        cls,
        cost_s: float,
        *,
        interval_s: float,
        window_s: float,
        speeds_are_known: bool,
    ) -> ControlPace:
        """Return the rhythm for moves that cost ``cost_s`` each.

        A move may take no more than a quarter of the time. Where the speeds of the
        splits are known, work under way is evidence enough, so that a cheap move may
        be made every other second; otherwise a decision has to wait for latencies, and
        ``interval_s`` and ``window_s`` hold as the operator gave them.
        """
        if not speeds_are_known:
            return cls(interval_s, window_s, max(_COOLDOWN_S, 4 * cost_s))
        looks_every_s = min(interval_s, max(_LEAST_INTERVAL_S, 10 * cost_s))
        return cls(
            interval_s=looks_every_s,
            window_s=min(window_s, max(5 * looks_every_s, 10 * cost_s)),
            cooldown_s=max(2 * looks_every_s, 4 * cost_s),
            is_cheap=cost_s <= _CHEAP_S,
        )

    def limits(self, **more: Any) -> ControlLimits:
        """Return limits that suit this rhythm; ``more`` are those it leaves open."""
        if self.is_cheap:
            more = {"decisive_excess": 1.0, "least_gain": 0.05, **more}
        return ControlLimits(cooldown_s=self.cooldown_s, window_s=self.window_s, **more)
