# SPDX-License-Identifier: Apache-2.0
"""What decode streams: all that its client has not been sent, and nothing else.

The first token of a request that joins waits for the result of the step that runs. The
request is in the step after that one: sent at once, its first token would be two steps
ahead of its second, and this gap longer than any other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sglang.srt.disaggregation.utils import DisaggregationMode
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.managers.scheduler_components.output_streamer import (
    SchedulerOutputStreamer,
)


class NewsStreamer(SchedulerOutputStreamer):
    """Upstream streams each request that joins: one that goes on has nothing to say.

    And its decode role leaves the prompt's log-probabilities to prefill.
    """

    @classmethod
    def like(cls, streamer: SchedulerOutputStreamer) -> NewsStreamer:
        """In the place of ``streamer``, with all that it has."""
        fields = [field.name for field in dataclasses.fields(streamer)]
        parts = {name: getattr(streamer, name) for name in fields}
        return cls(**{**parts, "disaggregation_mode": DisaggregationMode.NULL})

    _ended_meanwhile: list[Req] | None = None
    _waits_for_result = False
    _joined: Sequence[Req] = ()

    @contextmanager
    def with_next_result(self) -> Iterator[None]:
        """What is streamed here goes out with the result of the step that runs."""
        self._waits_for_result = True
        try:
            yield
        finally:
            self._waits_for_result = False

    def hold(self) -> None:
        """Keep what comes: what a predecessor sent may not have arrived yet."""
        self._ended_meanwhile = []

    def let_go(self) -> None:
        """All of the predecessor's is there; what still runs says more by itself."""
        ended, self._ended_meanwhile = self._ended_meanwhile, None
        if ended:
            self.stream_output(ended, any(req.return_logprob for req in ended))

    def stream_output(
        self, reqs: list[Req], return_logprob: Any, skip_req: Req | None = None
    ) -> None:
        if self._ended_meanwhile is not None:
            self._ended_meanwhile += [req for req in reqs if req.finished()]
            return
        news = [
            r for r in reqs if r.finished() or len(r.output_ids) > r.send_token_offset
        ]
        if self._waits_for_result:
            self._joined = [*self._joined, *(r for r in news if not r.finished())]
            news = [r for r in news if r.finished()]
        elif self._joined:
            news = [*self._joined, *(r for r in news if r not in self._joined)]
            self._joined = ()
            return_logprob = any(r.return_logprob for r in news)
        super().stream_output(news, return_logprob, skip_req)
