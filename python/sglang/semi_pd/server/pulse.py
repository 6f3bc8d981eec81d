# SPDX-License-Identifier: Apache-2.0
"""Whether the hearts of some workers beat: a worker may hang without ending."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sglang.semi_pd.workers.heartbeat import Heartbeat

if TYPE_CHECKING:
    from sglang.semi_pd.server.worker import Worker


class Pulse:
    """When each worker's heartbeat was last seen to move; somebody has to look."""

    def __init__(self, workers: tuple[Worker, ...]) -> None:
        now = time.monotonic()
        self._workers = [
            (worker, Heartbeat(worker.spec.heartbeat_path)) for worker in workers
        ]
        self._seen = {worker: (-1, now) for worker, _ in self._workers}

    def close(self) -> None:
        """Look no more."""
        for _, heartbeat in self._workers:
            heartbeat.close()

    def silences(self) -> dict[Worker, float]:
        """For how many seconds each heart has been seen not to beat."""
        now = time.monotonic()
        for worker, heartbeat in self._workers:
            count = heartbeat.read()
            if count != self._seen[worker][0]:
                self._seen[worker] = (count, now)
        return {worker: now - at for worker, (_, at) in self._seen.items()}

    def silent(self, timeout_s: float) -> Worker | None:
        """A worker whose heart has not beaten for so long."""
        silences = self.silences().items()
        return next((one for one, for_s in silences if for_s > timeout_s), None)
