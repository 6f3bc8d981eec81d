# SPDX-License-Identifier: Apache-2.0
"""Where handed-over requests arrive at decode, and where retracted ones wait.

Upstream reserves memory here for a prompt whose KV is still to come.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.disaggregation.decode import DecodePreallocQueue
from sglang.srt.managers.schedule_batch import Req


class AdoptionQueue(DecodePreallocQueue):
    """Where adopted requests arrive, and where retracted ones wait for memory."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.adopted: list[Req] = []

    def _init_kv_manager(self) -> None:  # type: ignore[override]
        return None

    def add(self, req: Req, is_retracted: bool = False) -> None:  # noqa: FBT001
        if is_retracted:
            req.retraction_mb_id = None
            self.retracted_queue.append(req)
        elif self.scheduler.adopt(req):
            self.adopted.append(req)

    @property
    def pages_to_resume(self) -> int:
        """Pages that must be free for the first retracted request to run again."""
        if not self.retracted_queue:
            return 0
        tokens, _ = self._prealloc_required_tokens(self.retracted_queue[0])
        tokens += self._active_reserved_tokens()
        pages: int = tokens // self.tree_cache.page_size
        return pages

    def _prealloc_required_tokens(self, req: Req) -> tuple[int, int]:
        full, swa = super()._prealloc_required_tokens(req)
        if not self._active_req_count():
            # Alone, it needs no more than itself: more might never be free.
            full = self._prealloc_kv_lens(req)[0] + self.tree_cache.page_size
        return full, swa

    def pop_adopted(self) -> list[Req]:
        """Requests that may join the batch.

        While retracted ones wait, they do too; except one by one when the batch is so
        small that it could not free memory by itself: they hold what the others need.
        """
        most = len(self.adopted)
        if self.retracted_queue:
            running = self.scheduler.running_batch.batch_size()
            most = 1 if running + len(self.scheduler.waiting_queue) < 2 else 0
        adopted, self.adopted = self.adopted[:most], self.adopted[most:]
        return adopted
