# SPDX-License-Identifier: Apache-2.0
"""``uvicorn`` whose server can be ended without a signal.

SGLang's HTTP server calls the module ``uvicorn``; in a thread there are no signals.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn


class EndableUvicorn:
    """Stands for the module: all of it, but for what makes a server."""

    def __init__(self) -> None:
        self._server: uvicorn.Server | None = None
        self._is_ending = False

    def __getattr__(self, name: str) -> Any:
        return getattr(uvicorn, name)

    def Server(self, config: uvicorn.Config) -> uvicorn.Server:  # noqa: N802 - theirs
        """As uvicorn's; the server is remembered."""
        self._server = uvicorn.Server(config)
        self._server.should_exit = self._is_ending
        return self._server

    def run(self, app: Any, **options: Any) -> None:
        """As uvicorn's, with one process."""
        self.Server(uvicorn.Config(app, **options)).run()

    def end(self, *, at_once: bool = False) -> None:
        """Have the server end, now or as soon as it is made.

        Args:
            at_once: wait for no request.
        """
        self._is_ending = True
        if self._server is not None:
            self._server.force_exit = at_once
            self._server.should_exit = True

    @contextmanager
    def instead_in(self, module: Any) -> Iterator[None]:
        """Inside, ``module`` finds this under the name of ``uvicorn``."""
        module.uvicorn = self
        try:
            yield
        finally:
            module.uvicorn = uvicorn
