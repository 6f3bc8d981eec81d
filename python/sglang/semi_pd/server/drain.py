# SPDX-License-Identifier: Apache-2.0
"""How a server ends: asked once it finishes what runs, asked twice it ends at once.

SIGTERM and Ctrl-C are the same request. While the server drains, ``admission`` answers
new work with 503.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from sglang.semi_pd.launch.starting import SIGNALS
from sglang.semi_pd.server import rehearsal
from sglang.semi_pd.server.readiness import Cause, Readiness

logger = logging.getLogger(__name__)

POLL_S = 0.2
REPORT_S = 5.0
ABORT_TIMEOUT_S = 5.0
"""So long aborted requests may take to tell their clients."""
LAST_ANSWERS_S = 5
"""So long answers may take that are no requests, such as to a move of the split."""
WHY = "this server is shutting down"
INTERRUPTED = 130
"""Exit code of a server that did not finish what ran."""


class Drain:
    """The end of one server, from the first signal on.

    Lives in the main process, on its event loop.

    Args:
        on_begin: called once, when the end is asked for.

    Attributes:
        has_begun: whether the end was asked for.
        was_cut_short: whether requests were aborted, not finished.
    """

    def __init__(
        self, readiness: Readiness, on_begin: Callable[[], None] = lambda: None
    ) -> None:
        self.has_begun = False
        self.was_cut_short = False
        self._readiness, self._on_begin = readiness, on_begin
        self._manager: Any = None
        self._server: Any = None

    def listen(self, manager: Any) -> None:
        """Take both signals over from uvicorn and SGLang, which have them by now.

        In a thread, where Python has no signals, and under another HTTP server than
        uvicorn they stay with who has them.
        """
        import uvicorn

        if threading.current_thread() is not threading.main_thread():
            return
        server = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
        if not isinstance(server, uvicorn.Server):
            return
        self._manager, self._server = manager, server
        for number in SIGNALS:
            manager.event_loop.add_signal_handler(number, self.ask)

    def ask(self) -> None:
        """Finish what runs and end; asked again, abort it and end."""
        if not self._manager.gracefully_exit:
            self._begin(self._manager)
        elif not self.was_cut_short:
            self.was_cut_short = True
            logger.warning("Aborting %d requests", self._running())
            self._manager.abort_request(abort_all=True)
        else:
            self._end()

    async def run(self, manager: Any) -> None:
        """Wait for the end of the last request once draining, then end the server.

        In the place of SGLang's own watchdog, which kills its process tree, itself
        included: that leaves exit code 137 and whatever the killed had open.
        """
        while not manager.gracefully_exit:
            await asyncio.sleep(POLL_S)
        if self._readiness.why_not != WHY:
            self._begin(manager)
        reported_s = time.monotonic()
        aborting_s = 0.0
        while self._running() and aborting_s < ABORT_TIMEOUT_S:
            await asyncio.sleep(POLL_S)
            aborting_s += POLL_S if self.was_cut_short else 0.0
            if time.monotonic() - reported_s > REPORT_S:
                reported_s = time.monotonic()
                logger.info("Draining: %d requests left", self._running())
        self._end()
        if self._running():
            self._end()

    def _begin(self, manager: Any) -> None:
        self.has_begun = True
        self._manager = manager
        self._readiness.close(Cause.DRAINING, WHY)
        manager.gracefully_exit = True
        self._on_begin()
        logger.warning(
            "Draining: %d requests run, new ones get 503; once more (Ctrl-C or "
            "SIGTERM) aborts them",
            self._running(),
        )

    def _running(self) -> int:
        """A request counts from its first byte on, SGLang's of its own as well."""
        asked = [
            rid
            for rid in self._manager.rid_to_state
            if not rid.startswith(rehearsal.PREFIX)
        ]
        return max(self._readiness.under_way, len(asked))

    def _end(self) -> None:
        """As uvicorn ends on Ctrl-C; the second time it waits for no connection.

        The signals are uvicorn's again: it raises the one it got once more at its end.
        """
        if self._server is None:
            signal.raise_signal(signal.SIGINT)
            return
        # No request is left; who still asks something else is not waited for.
        self._server.config.timeout_graceful_shutdown = LAST_ANSWERS_S
        for number in SIGNALS:
            self._manager.event_loop.remove_signal_handler(number)
            signal.signal(number, self._server.handle_exit)
        self._server.handle_exit(signal.SIGINT, None)
