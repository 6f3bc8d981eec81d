# SPDX-License-Identifier: Apache-2.0
"""Requests from when they come to prefill until the scheduler has built them.

That may take as long as a grammar takes to compile. What was sent is kept as it came,
for the next worker builds the request from it once more.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from sglang.semi_pd.workers.continuation import (
    accept_by_grammar,
    continue_from,
    pad_logprobs,
)
from sglang.semi_pd.workers.succession_messages import Resume

if TYPE_CHECKING:
    from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
    from sglang.srt.managers.schedule_batch import Req


class Arrivals:
    """What is known of requests that are not built yet, by their ids."""

    def __init__(self) -> None:
        self._as_sent: dict[str, TokenizedGenerateReqInput] = {}
        self._output_ids: dict[str, list[int]] = {}

    @property
    def rids(self) -> list[str]:
        """Ids of the requests that are not built yet."""
        return list(self._as_sent)

    def resume(self, message: Resume) -> None:
        """A request that follows was another worker's; its client has some tokens."""
        self._output_ids[message.request.rid] = message.output_ids

    def note(self, request: TokenizedGenerateReqInput) -> None:
        """Keep what was sent, before upstream's role limits max_new_tokens in place."""
        self._as_sent[request.rid] = copy.copy(request)
        request.sampling_params = copy.copy(request.sampling_params)

    def complete(self, req: Req) -> bool:
        """Give the request just built what it came with; whether it is resumed."""
        is_resumed = req.rid in self._output_ids
        req.semi_pd_request = self._as_sent.pop(req.rid, None)
        output_ids = self._output_ids.pop(req.rid, [])
        continue_from(req, output_ids, sent_tokens=len(output_ids))
        pad_logprobs(req)
        accept_by_grammar(req, output_ids)
        return is_resumed
