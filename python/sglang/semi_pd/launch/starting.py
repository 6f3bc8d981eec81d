# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM while a server starts: one line, no traceback, nothing left.

Until the HTTP server listens there is nothing to drain; what a signal means afterwards
is for ``server.drain`` to say. Under somebody's Python program, without a command line,
the signals are that program's.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from sglang.semi_pd.launch import start_progress

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Start:
    """A start that a signal may end; lives in the main thread of the main process."""

    def __init__(self) -> None:
        self._stops: list[Callable[[], None]] = []

    def listen(self, stop: Callable[[], None]) -> None:
        """From here on a signal ends the start: ``stop`` first, then the process.

        The exit code is 128 and the signal's number, as a shell has it.
        """
        self._stops = [stop]
        for number in SIGNALS:
            signal.signal(number, self._end)

    def on_end(self, stop: Callable[[], None]) -> None:
        """Something more to stop, after what was named before."""
        if self._stops:
            self._stops.append(stop)

    def is_over(self) -> None:
        """The start is over: signals mean what they mean to Python."""
        if self._stops:
            self._stops = []
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _end(self, number: int, _: FrameType | None) -> None:
        for one in SIGNALS:
            signal.signal(one, _end_at_once)
        start_progress.end()
        start_progress.tell(f"{signal.Signals(number).name} while starting; ending")
        for stop in self._stops:
            stop()
        raise SystemExit(128 + number)


@contextmanager
def signals_ignored() -> Iterator[None]:
    """Inside, the server ends in good order; a signal would have it end half way."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals do not come here
        return
    before = [signal.signal(number, signal.SIG_IGN) for number in SIGNALS]
    try:
        yield
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


def _end_at_once(number: int, _: FrameType | None) -> None:
    """Code that was interrupted may hold the exit up, or have swallowed it."""
    os._exit(128 + number)


_start = Start()
listen, on_end, is_over = _start.listen, _start.on_end, _start.is_over
