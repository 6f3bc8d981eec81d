# SPDX-License-Identifier: Apache-2.0
"""SGLang's HTTP server in a thread, for a coordinator used from Python."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sglang.semi_pd.errors import WorkerStartError

if TYPE_CHECKING:
    import uvicorn
    from sglang.srt.server_args import ServerArgs

START_TIMEOUT_S = 1800.0


class ServerThread:
    """Runs ``launch_server`` until stopped.

    The thread is the parent of all processes of the instance and outlives them: the
    kernel ends the children of a thread that ends.
    """

    def __init__(self, server_args: ServerArgs) -> None:
        self._server_args = server_args
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._uvicorn: uvicorn.Server | None = None
        self._thread = threading.Thread(target=self._run, name="semi-pd", daemon=True)

    def start(self) -> None:
        """Start serving; returns when the server has answered its own first request.

        Raises:
            WorkerStartError: it ended, or took too long.
        """
        self._thread.start()
        self._ready.wait(START_TIMEOUT_S)
        if self._error is not None or not self._ready.is_set():
            raise WorkerStartError(
                "Failed to initialize Semi-PD Coordinator",
                why=str(self._error or "the server did not come up in time"),
                mend="see the log above",
            ) from self._error

    def stop(self) -> None:
        """Let requests finish and end; when it returns, every process is gone."""
        if self._uvicorn is not None:
            self._uvicorn.should_exit = True
        self._thread.join()

    def _run(self) -> None:
        from sglang.srt.entrypoints import http_server
        from sglang.srt.plugins import load_plugins

        load_plugins()
        # Upstream calls ``uvicorn.run``, which only a signal can end.
        http_server.uvicorn = SimpleNamespace(run=self._serve)
        try:
            http_server.launch_server(
                self._server_args, launch_callback=self._ready.set
            )
        except BaseException as error:  # noqa: BLE001 - handed to the starting thread
            self._error = error
        finally:
            self._ready.set()

    def _serve(self, app: Any, **options: Any) -> None:
        import uvicorn

        self._uvicorn = uvicorn.Server(uvicorn.Config(app, **options))
        self._uvicorn.run()
