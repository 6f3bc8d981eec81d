# SPDX-License-Identifier: Apache-2.0
"""What Semi-PD changes in SGLang's main process, and nothing else changes it.

SGLang launches one scheduler; with Semi-PD the coordinator launches resident, prefill
and decode in its place. Without a Semi-PD flag every hook calls the original.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi import HTTPException
from sglang.semi_pd.launch import start_progress, starting
from sglang.semi_pd.launch.refusal import exit_without_traceback
from sglang.semi_pd.server import (
    fork_server,
    offline_engine,
    run_directory,
    token_range,
)
from sglang.semi_pd.server.drain import Drain
from sglang.semi_pd.utils import InstanceRole

if TYPE_CHECKING:
    from sglang.semi_pd.semi_pd_coordinator import SemiPDCoordinator
    from sglang.semi_pd.server.instance_load import InstanceLoadReader
    from sglang.srt.server_args import PortArgs, ServerArgs

Original = Callable[..., Any]

NO_RETRACT = "mode retract is not supported with Semi-PD: use in_place or abort"
_ASK = "sglang.srt.managers.communicator.FanOutCommunicator.__call__"
_ENGINE = "sglang.srt.entrypoints.engine.Engine"
_LOAD_PATH = "sglang.srt.managers.load_snapshot.shm_path_for"
_MANAGER = "sglang.srt.managers.tokenizer_manager.TokenizerManager"


class MainProcessHooks:
    """The hooks, and the coordinator they serve once there is one."""

    def __init__(self) -> None:
        self.coordinator: SemiPDCoordinator | None = None
        self._loads: InstanceLoadReader | None = None
        self._drain: Drain | None = None

    def use(self, coordinator: SemiPDCoordinator | None) -> None:
        """See the function of this name."""
        self.coordinator, self._drain = coordinator, None

    def by_target(self) -> dict[str, Original]:
        """AROUND hooks by the dotted name of what they wrap."""
        return {
            f"{_ENGINE}._launch_scheduler_processes": self.launch_schedulers,
            f"{_ENGINE}._launch_detokenizer_subprocesses": self.launch_detokenizer,
            **token_range.HOOKS,
            f"{_MANAGER}.init_ipc_channels": self.init_ipc_channels,
            f"{_MANAGER}.init_request_dispatcher": self.init_dispatcher,
            f"{_MANAGER}._dispatch_to_scheduler": self.dispatch,
            _LOAD_PATH: self.load_snapshot_path,
            f"{_MANAGER}._async_dispatch_to_scheduler": self.dispatch_async,
            f"{_MANAGER}._init_req_state": self.init_request,
            f"{_MANAGER}._handle_batch_output": self.handle_output,
            f"{_MANAGER}._handle_abort_req": self.handle_abort,
            f"{_MANAGER}.get_internal_state": self.internal_state,
            f"{_MANAGER}.auto_create_handle_loop": self.listen,
            f"{_MANAGER}.sigterm_watchdog": self.drain,
            f"{_MANAGER}.pause_generation": self.pause,
            _ASK: self.ask,
        }

    def launch_schedulers(
        self,
        original: Original,
        engine: type,
        server_args: ServerArgs,
        port_args: PortArgs,
        run_scheduler_process_func: Original,
    ) -> Any:
        """Start the instance where upstream starts one scheduler."""
        if not server_args.uses_semi_pd():
            starting.is_over()
            start_progress.end()
            return original(engine, server_args, port_args, run_scheduler_process_func)
        if not server_args.divides():
            from sglang.semi_pd.server import unified_memory_server

            return unified_memory_server.launch(
                partial(original, engine, server_args, port_args)
            )
        offline_engine.refuse()
        from sglang.semi_pd.semi_pd_coordinator import SemiPDCoordinator
        from sglang.semi_pd.server import instance_launch
        from sglang.semi_pd.server.instance_load import InstanceLoadReader

        failing = partial(
            exit_without_traceback,
            end=self._end_processes,
            shows_it=server_args.log_level == "debug",
        )
        with failing():
            coordinator = self.coordinator or SemiPDCoordinator(server_args)
        self.coordinator = coordinator
        run_directory.adopt_sockets(coordinator.run_directory, port_args)
        self._loads = InstanceLoadReader(coordinator.load_snapshot_path)
        coordinator.loads = self._loads
        self._extend_http_server(coordinator)
        result = instance_launch.launch(coordinator, port_args, failing)
        return result, []  # upstream would end the server when a worker dies

    def launch_detokenizer(
        self,
        original: Original,
        engine: type,
        server_args: ServerArgs,
        port_args: PortArgs,
        run_detokenizer_process_func: Original,
    ) -> Any:
        """One that can tell when nothing of a dead worker is on its way any more."""
        if self.coordinator is None:
            return original(
                engine, server_args, port_args, run_detokenizer_process_func
            )
        from sglang.semi_pd.server import detokenizer

        process = fork_server.new_process(
            detokenizer.run,
            server_args,
            port_args,
            name="detokenizer",
            method=server_args.worker_start_method,
        )
        process.start()
        assert self.coordinator.group is not None, "workers are launched first"
        self.coordinator.group.detokenizer = process
        return [], []  # as with workers: the supervisor watches it

    def init_ipc_channels(
        self, original: Original, manager: Any, port_args: PortArgs
    ) -> None:
        """Add the other sockets to upstream's, which is the first prefill's, and read
        the load of both workers."""
        original(manager, port_args)
        if self.coordinator is not None:
            self.coordinator.connect(manager, port_args)
            manager.load_snapshot_reader.close()
            manager.load_snapshot_reader = self._loads

    def init_dispatcher(self, original: Original, manager: Any) -> None:
        """Take what our processes say besides upstream's messages."""
        original(manager)
        if self.coordinator is not None:
            self.coordinator.switchboard.listen()

    def load_snapshot_path(self, original: Original, ipc_name: str) -> str:
        """In the run directory, which goes when the server goes."""
        coordinator = self.coordinator
        if coordinator is None:
            return original(ipc_name)
        return coordinator.load_snapshot_path(InstanceRole.DECODE)

    def dispatch(self, original: Original, manager: Any, message: Any) -> None:
        """Send to whom it concerns."""
        if self.coordinator is None:
            original(manager, message)
        else:
            self.coordinator.slo.clients.sent(manager, message)
            self.coordinator.switchboard.router.send(message)

    async def dispatch_async(
        self, original: Original, manager: Any, message: Any
    ) -> None:
        """As ``dispatch``."""
        if self.coordinator is None:
            await original(manager, message)
        else:
            self.coordinator.slo.clients.sent(manager, message)
            await self.coordinator.switchboard.router.send_async(message)

    def init_request(
        self,
        original: Original,
        manager: Any,
        obj: Any,
        request: Any = None,
        *arguments: Any,
        **options: Any,
    ) -> Any:
        """Refuse what is not served; note whether it is interactive or batch."""
        if self.coordinator is not None:
            from sglang.semi_pd.server import refused_fields, slo_class

            refused_fields.check(obj)
            slo_class.note(obj, request)
        return original(manager, obj, request, *arguments, **options)

    async def handle_output(
        self, original: Original, manager: Any, output: Any
    ) -> None:
        """Note first tokens and ends, as the clients see them."""
        if self.coordinator is None:
            await original(manager, output)
            return
        clients = self.coordinator.slo.clients
        states = clients.states(manager, output)
        await original(manager, output)
        clients.received(output, states)
        ended = [
            rid
            for rid, state in zip(output.rids, states, strict=True)
            if state is None or state.finished
        ]
        self.coordinator.switchboard.router.ledger.forget(ended)

    def handle_abort(self, original: Original, manager: Any, abort: Any) -> None:
        """Note a request that was dropped while it waited."""
        original(manager, abort)
        if self.coordinator is not None:
            self.coordinator.slo.clients.aborted(abort.rid)
            self.coordinator.switchboard.router.ledger.forget([abort.rid])

    async def ask(self, original: Original, communicator: Any, question: Any) -> Any:
        """A control message that the answering worker may not live to answer."""
        if self.coordinator is None:
            return await original(communicator, question)
        with self.coordinator.switchboard.router.questions.until_answered(question):
            return await original(communicator, question)

    async def pause(self, original: Original, manager: Any, pause: Any) -> None:
        """Refuse what would have requests come from a prefill server once more."""
        if self.coordinator is not None and pause.mode == "retract":
            raise HTTPException(HTTPStatus.BAD_REQUEST, NO_RETRACT)
        await original(manager, pause)

    async def internal_state(self, original: Original, manager: Any) -> Any:
        """From outside an instance is one server, not half of a disaggregated pair."""
        states = await original(manager)
        if self.coordinator is not None:
            mode = manager.server_args.disaggregation_mode
            for state in states:
                state["disaggregation_mode"] = mode
        return states

    def listen(self, original: Original, manager: Any) -> None:
        """The event loop is about to run: from here on signals ask for a drain."""
        is_first = manager.event_loop is None
        original(manager)
        if is_first and self._drain is not None:
            self._drain.listen(manager)

    async def drain(self, original: Original, manager: Any) -> None:
        """Let running requests finish, then end; see ``Drain``."""
        if self._drain is None:
            await original(manager)
        else:
            await self._drain.run(manager)

    def _extend_http_server(self, coordinator: SemiPDCoordinator) -> None:
        from sglang.semi_pd.server.http_server import HTTPServerHooks

        assert self._loads is not None, "made by launch_schedulers"
        self._drain = Drain(coordinator.readiness, coordinator.end_moves)
        on_end = partial(self.use, None)
        HTTPServerHooks(coordinator, self._drain, on_end=on_end).install(
            silence=self._loads.silence
        )

    def _end_processes(self) -> None:
        if self.coordinator is not None:
            self.coordinator.end_processes()


_hooks = MainProcessHooks()


def use(coordinator: SemiPDCoordinator | None) -> None:
    """The next launch in this process is this coordinator's; with None, nobody's."""
    _hooks.use(coordinator)


def install() -> list[str]:
    """Register the hooks with SGLang; returns the names of what they wrap."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    hooks = _hooks.by_target()
    for target, hook in hooks.items():
        HookRegistry.register(target, hook, HookType.AROUND)
    return list(hooks)
