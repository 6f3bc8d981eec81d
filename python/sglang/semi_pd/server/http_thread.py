# SPDX-License-Identifier: Apache-2.0
"""SGLang's HTTP server in a thread, for a coordinator used from Python."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, ClassVar

from sglang.semi_pd.errors import WorkerStartError
from sglang.semi_pd.server import main_process
from sglang.semi_pd.server.endable_uvicorn import EndableUvicorn

if TYPE_CHECKING:
    from sglang.semi_pd.semi_pd_coordinator import SemiPDCoordinator
    from sglang.srt.server_args import ServerArgs

START_TIMEOUT_S = 1800.0
GIVE_UP_S = 30.0
"""So long the thread of a start that failed may take to end."""


class ServerThread:
    """Runs ``launch_server`` until stopped; one in the life of a process.

    The thread is the parent of all processes of the instance and outlives them: the
    kernel ends the children of a thread that ends.
    """

    _was_made: ClassVar[bool] = False

    def __init__(self, server_args: ServerArgs) -> None:
        if ServerThread._was_made:
            raise WorkerStartError(
                "A coordinator was started in this process before",
                why="SGLang has one HTTP application per process, set up once",
                mend="start each in a process of its own; a running one can move its "
                "split",
            )
        ServerThread._was_made = True
        self._server_args = server_args
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._uvicorn = EndableUvicorn()
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
        self._uvicorn.end()
        self._thread.join()

    def abandon(self) -> bool:
        """After a start that failed: end at once; whether it has ended.

        It may hang for ever, where it hung until the time was up.
        """
        self._uvicorn.end(at_once=True)
        if self._thread.ident is not None:
            self._thread.join(GIVE_UP_S)
        return not self._thread.is_alive()

    def _run(self) -> None:
        from sglang.srt.entrypoints import http_server
        from sglang.srt.plugins import load_plugins

        load_plugins()
        try:
            with self._uvicorn.instead_in(http_server):
                http_server.launch_server(
                    self._server_args, launch_callback=self._ready.set
                )
        except BaseException as error:  # noqa: BLE001 - handed to the starting thread
            self._error = error
        finally:
            self._ready.set()


def serve(coordinator: SemiPDCoordinator) -> ServerThread:
    """Serve as the coordinator's ``ServerArgs`` say, until the thread is stopped.

    Raises:
        WorkerStartError: the server ended instead, or is not the first; what was
            started has been ended.
    """
    thread: ServerThread | None = None
    try:
        thread = ServerThread(coordinator.server_args)
        main_process.use(coordinator)
        thread.start()
    except BaseException:
        # Nobody will call ``stop``: the body of a ``with`` is not entered.
        coordinator.end_processes()
        if thread is not None:
            if thread.abandon():
                main_process.use(None)
            coordinator.end_processes()  # what it started meanwhile
        raise
    return thread
