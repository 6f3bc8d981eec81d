# SPDX-License-Identifier: Apache-2.0
"""The last hour of an instance: figures at a steady pace, and what happened between."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sglang.semi_pd.monitoring.instance_view import InstanceView, Latency

logger = logging.getLogger(__name__)

INTERVAL_S = 2.0
LENGTH = 1800
EVENTS = 500

_KV = "kv_"
_SHOWN_PERCENTILES = (50, 95, 99)

Figures = dict[str, float | str | None]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened between two samples; ``at_s`` is Unix time."""

    at_s: float
    kind: str
    text: str


class History:
    """Samples an instance from a thread of its own; memory is bounded.

    Lives in the main process. ``LENGTH`` samples of some twenty figures and ``EVENTS``
    events are kept, the oldest leave first.

    Args:
        observe: gives the instance as it is now.
        interval_s: time between two samples, seconds.
        clock: Unix time, seconds.
    """

    def __init__(
        self,
        observe: Callable[[], InstanceView],
        *,
        interval_s: float = INTERVAL_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._observe = observe
        self._interval_s = interval_s
        self._clock = clock
        self._columns: tuple[str, ...] = ()
        self._rows: deque[tuple[int, tuple[Any, ...]]] = deque(maxlen=LENGTH)
        self._events: deque[tuple[int, Event]] = deque(maxlen=EVENTS)
        self._last: InstanceView | None = None
        self._next = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start to sample; does nothing if it already does."""
        if self._thread is not None:
            return
        self._stopping.clear()
        self._thread = threading.Thread(
            target=self._run, name="semi-pd-history", daemon=True
        )
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Stop sampling; what was sampled stays."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stopping.set()
            thread.join(timeout_s)

    def take(self) -> None:
        """Add one sample."""
        view, now_s = self._observe(), self._clock()
        figures: Figures = {"at_s": round(now_s, 2), **figures_of(view)}
        with self._lock:
            if not self._columns:
                self._columns = tuple(figures)
            row = tuple(figures.get(name) for name in self._columns)
            if self._last is not None:
                for kind, text in changes(self._last, view):
                    self._events.append((self._next, Event(now_s, kind, text)))
            self._rows.append((self._next, row))
            self._next += 1
            self._last = view

    def since(self, first: int = 0) -> dict[str, Any]:
        """Samples and events from number ``first`` on, ready for JSON.

        ``next`` is the number to ask for next time.
        """
        with self._lock:
            return {
                "interval_s": self._interval_s,
                "next": self._next,
                "columns": self._columns,
                "rows": [row for number, row in self._rows if number >= first],
                "events": [
                    {"at_s": round(one.at_s, 2), "kind": one.kind, "text": one.text}
                    for number, one in self._events
                    if number >= first
                ],
            }

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_s):
            try:
                self.take()
            except Exception:  # noqa: BLE001 - one bad sample must not end the history
                logger.exception("a sample of the instance's state failed; going on")


def figures_of(view: InstanceView) -> Figures:
    """The figures that are worth a curve."""
    realised = view.realised
    return {
        "asked_prefill": view.asked.prefill,
        "asked_decode": view.asked.decode,
        "realised_prefill": realised.prefill if realised else None,
        "realised_decode": realised.decode if realised else None,
        **_percentiles("ttft", view.ttft),
        **_percentiles("tpot", view.tpot),
        "prefill_queue": view.load.prefill_queue,
        "decode_queue": view.load.decode_queue,
        "waiting": view.load.waiting,
        "decoding": view.load.decoding,
        "requests_per_s": round(view.load.requests_per_s, 3),
        "tokens_per_s": round(view.load.tokens_per_s, 1),
        "reason": view.control.last_reason,
        **{f"{_KV}{state}": count for state, count in view.blocks.by_state.items()},
    }


def _percentiles(name: str, latency: Latency) -> Figures:
    shown = {p: latency.percentiles_ms[p] for p in _SHOWN_PERCENTILES}
    return {
        f"{name}_p{percentile}_ms": None if value is None else round(value, 3)
        for percentile, value in shown.items()
    }


def changes(before: InstanceView, after: InstanceView) -> Iterator[tuple[str, str]]:
    """What happened between two views of an instance: its kind, and a sentence."""
    if after.asked != before.asked:
        yield "split", f"The split moved from {before.asked} to {after.asked}"
    if after.moves.failed > before.moves.failed:
        yield "refused", f"The split did not move: {after.moves.last_failure}"
    if after.moves.generation != before.moves.generation:
        yield "rotation", f"Workers of generation {after.moves.generation} serve"
    died = after.moves.worker_deaths - before.moves.worker_deaths
    if died > 0:
        yield "death", f"{died} worker{'s' * (died > 1)} died"
    if after.control.is_violating and not before.control.is_violating:
        yield "violation", _violation(after)
    if before.control.is_violating and not after.control.is_violating:
        yield "met", "The SLOs are met again"
    if after.control.last_advice not in ("", before.control.last_advice):
        yield "advice", after.control.last_advice


def _violation(view: InstanceView) -> str:
    failing = [
        f"{name} P{latency.judged} {latency.judged_ms:.1f} ms, "
        f"target {latency.target_ms:g} ms"
        for name, latency in (("TTFT", view.ttft), ("TPOT", view.tpot))
        if latency.judged_ms is not None and latency.is_over_target
    ]
    return "SLO violated: " + ("; ".join(failing) or "in the controller's window")
