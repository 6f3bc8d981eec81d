# SPDX-License-Identifier: Apache-2.0
"""Says in the log where a worker stands that stands still.

Long before it is replaced: what held it up may end by itself, a kernel that is compiled
on first use for instance, and then nobody would know what it was.
"""

from __future__ import annotations

import logging
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from sglang.semi_pd.workers.standstill import SIGNAL

if TYPE_CHECKING:
    from sglang.semi_pd.server.pulse import Pulse
    from sglang.semi_pd.server.worker import Worker

logger = logging.getLogger(__name__)

TELL_AFTER_S = 5.0


class Standstills:
    """Those of the serving pair; each is told once.

    Args:
        hang_s: after so long a worker is replaced: it is told before.
    """

    def __init__(self, hang_s: float) -> None:
        self._told: set[Worker] = set()
        self._tell_after_s = min(TELL_AFTER_S, hang_s / 2)

    def look(self, pulse: Pulse) -> None:
        """Have every worker that has just stood still for long say where."""
        for worker, silence_s in pulse.silences().items():
            if silence_s < self._tell_after_s:
                self._told.discard(worker)
            elif worker not in self._told:
                self._told.add(worker)
                logger.warning(
                    "%s (pid %d) has stood still for %.1f s, and it stands here:",
                    worker.spec.title,
                    worker.pid,
                    silence_s,
                )
                with suppress(ProcessLookupError):  # it has just ended
                    signal.pidfd_send_signal(worker.pidfd, SIGNAL)
