# SPDX-License-Identifier: Apache-2.0
"""A start that fails half way leaves no process, whichever step it is that fails."""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.semi_pd.errors import WorkerStartError
from sglang.semi_pd.partition.sm_partition import NoPartition
from sglang.semi_pd.server import fork_server, worker
from sglang.semi_pd.server.worker import Worker
from sglang.semi_pd.sm_allocation import SMAllocation
from sglang.semi_pd.utils import InstanceRole

pytestmark = pytest.mark.upstream

SPLIT = SMAllocation(70, 30)


def sleep(_: Connection) -> None:
    time.sleep(600)


def started(folder: Path) -> tuple[Any, Any, Connection]:
    """What a worker is made of: its spec, a process that sleeps, and its pipe."""
    spec = SimpleNamespace(
        title="sglang::semi_pd_sleeper",
        heartbeat_path=folder / "heartbeat",
        share_path=folder / "share",
    )
    process, ready = fork_server.launch(
        sleep, name="sleeper", method="spawn", environment=dict(os.environ)
    )
    return spec, process, ready


@contextmanager
def no_more_open_files() -> Iterator[None]:
    """The next descriptor that this process asks for is refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_process_that_cannot_be_watched_is_ended(tmp_path: Path) -> None:
    spec, process, ready = started(tmp_path)
    with no_more_open_files(), pytest.raises(OSError, match="Too many open files"):
        Worker(spec, process, ready)
    assert process not in multiprocessing.active_children()
    assert ready.closed


def test_a_killed_process_that_is_not_gone_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "JOIN_TIMEOUT_S", 0.1)
    one = Worker(*started(tmp_path))
    with caplog.at_level(logging.ERROR):
        one.close()  # nobody has killed it
    assert f"sglang::semi_pd_sleeper (pid {one.pid}) has not ended" in caplog.text
    one.process.kill()
    one.process.join()


class FailsLate(NoPartition):
    """Gives so many processes an environment, and fails the next one."""

    def __init__(self, successes: int) -> None:
        self._left = successes

    def environment(self, role: InstanceRole, allocation: SMAllocation) -> Any:
        self._left -= 1
        if self._left < 0:
            raise OSError("no more")
        return super().environment(role, allocation)


@pytest.mark.parametrize("successes", [1, 3])
def test_a_pair_that_cannot_start_leaves_no_rank(
    successes: int, tiny_model: Path, tmp_path: Path
) -> None:
    group = two_ranks(tiny_model, tmp_path, FailsLate(successes))
    with pytest.raises(WorkerStartError, match="no more"):
        group.launch_pair(SPLIT)
    assert not multiprocessing.active_children()


def test_residents_that_cannot_all_start_are_known(
    tiny_model: Path, tmp_path: Path
) -> None:
    group = two_ranks(tiny_model, tmp_path, FailsLate(1))
    with pytest.raises(WorkerStartError, match="no more"):
        group.start(SPLIT)
    assert len(group.residents) == 1
    group.stop()
    assert not multiprocessing.active_children()


def two_ranks(model: Path, folder: Path, partition: NoPartition) -> Any:
    """The group of an instance whose workers each have two ranks."""
    from sglang.semi_pd.server.worker_group import WorkerGroup
    from sglang.srt.server_args import PortArgs, ServerArgs

    server_args = ServerArgs(
        model_path=str(model),
        dtype="float32",
        enable_semi_pd=True,
        tp_size=2,
        worker_start_method="spawn",
    )
    return WorkerGroup(server_args, PortArgs.init_new(server_args), folder, partition)
