# SPDX-License-Identifier: Apache-2.0
"""The phases of a start, with times, on stderr: a slow start must not look hung.

Only where somebody waits at a terminal or a log: ``begin`` is called for a server's
command line, and without it nothing is printed.
"""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass

from sglang.semi_pd.errors import ConfigError, SemiPDError, WorkerStartError

SILENCE_S = 10.0
"""After so long without a new phase the running ones are named again."""


@dataclass(frozen=True, slots=True)
class Phase:
    """What a process is doing now; children send it on the pipe of their readiness."""

    doing: str


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a process cannot start; the last that it says on that pipe."""

    why: str
    what: str = ""
    mend: str = ""
    is_refusal: bool = False

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """An error of ours as it is; of another its kind and words."""
        if isinstance(error, SemiPDError):
            is_refusal = isinstance(error, ConfigError)
            return cls(error.why, error.what, error.mend, is_refusal)
        return cls(" ".join(f"{type(error).__name__}: {error}".split()))

    def as_error(self, who: str) -> SemiPDError:
        """The error for the process that waits for ``who``."""
        kind = ConfigError if self.is_refusal else WorkerStartError
        return kind(
            self.what or f"{who} cannot start",
            why=self.why,
            mend=self.mend
            or "check the model and the flags; --log-level debug shows where",
        )


class StartProgress:
    """One start: what each process is doing, printed as it changes.

    Lives in the main process. A thread names what still runs in long silences.
    """

    def __init__(self) -> None:
        self._began_s = 0.0
        self._doing: dict[str, str] = {}
        self._news = threading.Event()
        self._is_over = True

    def begin(self, doing: str) -> None:
        """Count time from here; the main process is ``doing`` this."""
        self._began_s = time.monotonic()
        self._is_over = False
        self.enter(doing)
        threading.Thread(target=self._remind, name="progress", daemon=True).start()

    def enter(self, doing: str, who: str = "main") -> None:
        """A process has entered a phase; nothing is printed without ``begin``."""
        if self._is_over:
            return
        self._doing[who] = doing
        self._print(f"{who}: {doing}")
        self._news.set()

    def leave(self, what: str, who: str) -> None:
        """A process is ready: it is not waited for any more."""
        if not self._is_over:
            self.enter(what, who)
            del self._doing[who]

    def end(self, what: str = "") -> None:
        """The start is over, well (say how) or not."""
        if not self._is_over and what:
            self._print(what)
        self._is_over = True
        self._news.set()

    def _remind(self) -> None:
        while not self._is_over:
            if not self._news.wait(SILENCE_S) and not self._is_over:
                running = [f"{who}: {doing}" for who, doing in self._doing.items()]
                self._print(f"still {', '.join(running)}")
            self._news.clear()

    def _print(self, text: str) -> None:
        tell(f"{time.monotonic() - self._began_s:5.1f} s  {text}")


def tell(text: str) -> None:
    """A line for the person who starts the server."""
    print(f"semi-pd: {text}", file=sys.stderr, flush=True)


_progress = StartProgress()
begin, enter, leave, end = (
    _progress.begin,
    _progress.enter,
    _progress.leave,
    _progress.end,
)
