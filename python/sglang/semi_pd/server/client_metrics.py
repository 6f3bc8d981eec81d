# SPDX-License-Identifier: Apache-2.0
"""TTFT and TPOT as clients see them, taken where SGLang's main process sees them.

A request counts from the moment it reached the server, so that its TTFT includes
tokenising and queueing. Lives in the main process, on its event loop.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sglang.semi_pd.metrics_collector import SemiPDMetricsCollector
from sglang.semi_pd.server import rehearsal, slo_class

if TYPE_CHECKING:
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

_NOBODYS = ("HEALTH_CHECK", rehearsal.PREFIX)
"""How ids of requests begin that no client sent."""
_SWEEP_S = 1.0


class ClientMetrics:
    """Feeds a collector from what passes through SGLang's TokenizerManager.

    Args:
        window_s: the collector's window, seconds.
    """

    def __init__(self, window_s: float) -> None:
        self.collector = SemiPDMetricsCollector(window_s, progress=self._tokens_so_far)
        self._generating: set[str] = set()
        self._open: set[str] = set()
        self._swept_s = 0.0
        self._states: Mapping[str, Any] = {}

    def sent(self, manager: TokenizerManager, message: Any) -> None:
        """A message went to the workers; note the requests in it."""
        self._states = manager.rid_to_state
        for request in message if hasattr(message, "__iter__") else [message]:
            self._arrived(manager, request)

    def states(self, manager: TokenizerManager, output: Any) -> list[Any]:
        """The state of each request in an output; SGLang forgets those that end."""
        return [manager.rid_to_state.get(rid) for rid in output.rids]

    def received(self, output: Any, states: list[Any]) -> None:
        """SGLang has dealt with an output; note first tokens and ends."""
        for rid, state, worker in zip(
            output.rids, states, output.time_stats, strict=True
        ):
            if state is None or rid.startswith(_NOBODYS):
                continue
            if rid not in self._generating:
                self._generating.add(rid)
                first = _first_token_time(state, worker)
                self.collector.record_first_token(rid, now=first)
            if state.finished:
                self._generating.discard(rid)
                self._open.discard(rid)
                self.collector.record_request_completion(
                    rid, len(state.output_ids), now=state.time_stats.finished_time
                )

        self._forget_gone()

    def _forget_gone(self) -> None:
        """Drop requests whose client went away: SGLang forgets those without a word.

        Only here, where no output is half dealt with.
        """
        now = time.monotonic()
        if now - self._swept_s < _SWEEP_S:
            return
        self._swept_s = now
        for rid in [rid for rid in self._open if rid not in self._states]:
            self.aborted(rid)

    def aborted(self, rid: str) -> None:
        """A request was dropped while it waited."""
        self._generating.discard(rid)
        self._open.discard(rid)
        self.collector.record_abort(rid)

    def _arrived(self, manager: TokenizerManager, request: Any) -> None:
        input_ids = getattr(request, "input_ids", None)
        if input_ids is None or request.rid.startswith(_NOBODYS):
            return
        state = manager.rid_to_state.get(request.rid)
        created = state.time_stats.created_time if state is not None else None
        if state is not None:
            self._open.add(request.rid)
        self.collector.record_request_arrival(
            request.rid,
            len(input_ids),
            slo_class=slo_class.of(request),
            now=created or None,
        )

    def _tokens_so_far(self, rid: str) -> int | None:
        """Read by the controller's thread, about once a second; so nothing is counted
        per token."""
        state = self._states.get(rid)
        return None if state is None else len(state.output_ids)


def _first_token_time(state: Any, worker: Any) -> float:
    """When the client had the first token, or would have had it, had it streamed."""
    if not state.obj.stream and worker is not None and worker.prefill_finished_time:
        return float(worker.prefill_finished_time)
    return float(state.time_stats.first_token_time)
