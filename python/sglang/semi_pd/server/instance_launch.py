# SPDX-License-Identifier: Apache-2.0
"""The processes of an instance, started where SGLang starts its scheduler."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from sglang.semi_pd.launch import start_progress, starting
from sglang.semi_pd.utils import InstanceRole
from sglang.srt.entrypoints.engine import SchedulerInitResult

if TYPE_CHECKING:
    from sglang.semi_pd.semi_pd_coordinator import SemiPDCoordinator
    from sglang.srt.server_args import PortArgs


def launch(
    coordinator: SemiPDCoordinator,
    port_args: PortArgs,
    failing: Callable[[], AbstractContextManager[None]],
) -> SchedulerInitResult:
    """Start resident, prefill and decode; SGLang waits for them by what is returned.

    Args:
        failing: how a start ends that fails inside of it.
    """
    start_progress.enter("starting resident, prefill and decode")
    starting.on_end(coordinator.end_processes)
    atexit.register(coordinator.end_processes)  # if SGLang's own start fails
    with failing():
        group = coordinator.start_processes(port_args)
    infos: list[dict[str, Any]] = []

    def wait_for_ready() -> None:
        with failing():
            said = coordinator.wait_ready()
        infos.append(said[InstanceRole.DECODE])

    return SchedulerInitResult(
        scheduler_infos=infos,
        all_child_pids=[worker.pid for worker in group.workers],
        wait_for_ready=wait_for_ready,
    )
