# SPDX-License-Identifier: Apache-2.0
"""What decode streams: all that its client has not been sent, and nothing else."""

from __future__ import annotations

import dataclasses
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

    def stream_output(
        self, reqs: list[Req], return_logprob: Any, skip_req: Req | None = None
    ) -> None:
        news = [
            r for r in reqs if r.finished() or len(r.output_ids) > r.send_token_offset
        ]
        super().stream_output(news, return_logprob, skip_req)
