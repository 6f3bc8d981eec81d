# SPDX-License-Identifier: Apache-2.0
"""Whether a new request would be served, and if not, why.

One object of an instance's main process, which any part may close for good. The
instance is ready while no cause holds it closed. Two things are none. That SGLang is
still starting: its own ``/health`` says so, and its first request must be let in. And
that dead workers are being replaced: requests are let in and wait, as those under way
do, for new workers are there in seconds.
"""

from __future__ import annotations

from enum import Enum


class Cause(Enum):
    """Who holds an instance closed."""

    DRAINING = "draining"


class Readiness:
    """Closed for some causes, or ready; safe to use from any thread.

    Attributes:
        under_way: requests that were let in and are not answered in full. Only the
            event loop of the HTTP server changes it.
    """

    def __init__(self) -> None:
        self.under_way = 0
        self._closed: dict[Cause, str] = {}

    def close(self, cause: Cause, why: str) -> None:
        """Let no new request in. ``why``: one line, for the client that is refused."""
        self._closed[cause] = why

    @property
    def why_not(self) -> str | None:
        """The line of the first cause, None while ready."""
        return next(iter(self._closed.copy().values()), None)

    def as_status(self) -> dict[str, object]:
        """As plain values."""
        closed = {cause.value: why for cause, why in self._closed.copy().items()}
        return {
            "is_ready": not closed,
            "closed_by": closed,
            "requests_under_way": self.under_way,
        }
