# SPDX-License-Identifier: Apache-2.0
"""Control messages that no worker has answered yet.

SGLang waits for an answer without a limit, and lets nobody ask the same meanwhile. A
worker that dies, or leaves with a flush that it had put off, takes the question along:
it is put to its successor.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class OpenQuestions:
    """What was asked, by whoever waits; lives on the main process's event loop."""

    def __init__(self) -> None:
        self._asked: dict[int, Any] = {}
        self._sent: set[int] = set()

    @contextmanager
    def until_answered(self, question: Any) -> Iterator[None]:
        """Inside, somebody waits for the answer; it may not have been sent yet."""
        key = id(question)
        self._asked[key] = question
        try:
            yield
        finally:
            del self._asked[key]
            self._sent.discard(key)

    def note_sent(self, message: Any) -> None:
        """A message went out; if somebody waits for its answer it is remembered."""
        if id(message) in self._asked:
            self._sent.add(id(message))

    def unanswered(self) -> list[Any]:
        """What was sent, and is waited for."""
        return [self._asked[key] for key in self._sent]
