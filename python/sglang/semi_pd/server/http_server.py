# SPDX-License-Identifier: Apache-2.0
"""What Semi-PD changes in SGLang's HTTP server: its routes, its door, its end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sglang.semi_pd import long_lived
from sglang.semi_pd.hooks import require_applied
from sglang.semi_pd.launch import start_progress, starting
from sglang.semi_pd.server import http_routes
from sglang.semi_pd.server.admission import Admission
from sglang.semi_pd.server.before_serving import BeforeServing
from sglang.semi_pd.server.drain import INTERRUPTED, Drain
from sglang.srt.entrypoints import http_server
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

if TYPE_CHECKING:
    from sglang.semi_pd.semi_pd_coordinator import SemiPDCoordinator
    from sglang.srt.server_args import ServerArgs

logger = logging.getLogger(__name__)

Original = Callable[..., Any]

POLL_S = 0.1
_SERVE = "sglang.srt.entrypoints.http_server._setup_and_run_http_server"
_WARM_UP = "sglang.srt.entrypoints.http_server._wait_and_warmup"
_KILL = "sglang.srt.entrypoints.http_server.kill_process_tree"
_KEYS = "sglang.srt.utils.auth.add_api_key_middleware"


class HTTPServerHooks:
    """The HTTP server of one instance.

    Args:
        coordinator: whose instance it is.
        drain: what a signal asks for while the server runs.
        on_end: called when every process of the instance is gone.
    """

    def __init__(
        self,
        coordinator: SemiPDCoordinator,
        drain: Drain,
        *,
        on_end: Callable[[], None],
    ) -> None:
        self._coordinator = coordinator
        self._drain = drain
        self._on_end = on_end

    def install(self, *, silence: Callable[[], str | None]) -> None:
        """Before the server starts to listen; ``silence`` is as in ``Admission``."""
        readiness = self._coordinator.readiness
        http_routes.install(http_server.app, self._coordinator)
        http_server.app.add_middleware(Admission, readiness=readiness, silence=silence)
        http_server.app.add_middleware(BeforeServing, do=_begin_to_hear)
        hooks: dict[str, Original] = {
            _SERVE: self.serve,
            _WARM_UP: self.warm_up,
            _KILL: self.kill,
            _KEYS: http_routes.add_key_checks,
        }
        for target, hook in hooks.items():
            HookRegistry.register(target, hook, HookType.AROUND)
        HookRegistry.apply_hooks()
        require_applied(list(hooks))

    def serve(self, original: Original, *args: Any, **options: Any) -> None:
        """Serve HTTP until told to stop, then end every process in good order."""
        starting.is_over()
        try:
            original(*args, **options)
        finally:
            with starting.signals_ignored():
                start_progress.end()
                self._stop_watchdog()
                self._coordinator.end_processes()
                self._on_end()
                logger.info("Semi-PD has ended; every process is gone")
        if self._drain.was_cut_short:
            raise SystemExit(INTERRUPTED)

    def warm_up(
        self, original: Original, server_args: ServerArgs, *args: Any, **options: Any
    ) -> None:
        """The HTTP server is up: its own first request is the last step of a start."""
        start_progress.enter("answering a first request of its own")
        asking = threading.Thread(
            target=original, args=(server_args, *args), kwargs=options, daemon=True
        )
        asking.start()
        while asking.is_alive():
            if self._drain.has_begun:
                # It may ask a server that has ended, for two minutes.
                start_progress.end()
                return
            asking.join(POLL_S)
        long_lived.set_aside()
        start_progress.end(f"ready: {server_args.url()}")

    def kill(self, original: Original, *args: Any, **options: Any) -> None:
        """SGLang kills its processes if that request fails, as it does while the server
        drains."""
        if not self._drain.has_begun:
            original(*args, **options)

    @staticmethod
    def _stop_watchdog() -> None:
        """From here on, the end of a process is no accident."""
        state = http_server.get_global_state()
        watchdog = state.tokenizer_manager._subprocess_watchdog
        if watchdog is not None:
            watchdog.stop()


def _begin_to_hear() -> None:
    """On the event loop: take what workers say, and signals as the wish for a drain.

    Upstream begins with its first request. A split may move before it, a worker die.
    """
    http_server.get_global_state().tokenizer_manager.auto_create_handle_loop()
