# SPDX-License-Identifier: Apache-2.0
"""Processes start in both ways, with the environment that they were given."""

from __future__ import annotations

import os
import signal
import sys
import time
from multiprocessing import forkserver
from multiprocessing.connection import Connection

import pytest
from sglang.semi_pd.server import fork_server
from sglang.semi_pd.utils import END_SIGNAL

pytestmark = pytest.mark.upstream

TIMEOUT_S = 300.0


class Word:
    """Is one in the new process; sees the environment in which that is started."""

    seen: str | None = None

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        self.seen = os.environ.get("START_TEST")
        return str, ("hello",)


def outlive(number: int, ready: Connection) -> None:
    os.kill(os.getpid(), number)
    ready.send("lives")


def tell(word: str, ready: Connection) -> None:
    has_scheduler = "sglang.srt.managers.scheduler" in sys.modules
    ready.send((word, os.getpid(), os.environ.get("START_TEST"), has_scheduler))


@pytest.mark.parametrize(("method", "has_imported"), [("auto", True), ("spawn", False)])
def test_a_process_does_what_it_is_told(method: str, *, has_imported: bool) -> None:
    # A forked process has its environment from the fork server: workers replace it.
    fork_server.start()
    said = Word()
    process, ready = fork_server.launch(
        tell,
        said,
        name="worker",
        method=method,
        environment={**os.environ, "START_TEST": "told"},
    )
    assert ready.poll(TIMEOUT_S)
    word, pid, told, imported = ready.recv()
    process.join(10)
    assert (word, imported) == ("hello", has_imported)
    assert (process.pid, process.exitcode) == (pid, 0)
    assert told == said.seen == (None if method == "auto" else "told")
    assert "START_TEST" not in os.environ


def stay(ready: Connection) -> None:
    ready.send("lives")
    time.sleep(TIMEOUT_S)


@pytest.mark.parametrize("method", ["auto", "spawn"])
def test_a_process_can_be_told_to_end(method: str) -> None:
    """Though SIGTERM, by which multiprocessing does it, is not for it."""
    process, ready = fork_server.launch(
        stay, name="worker", method=method, environment=dict(os.environ)
    )
    assert ready.poll(TIMEOUT_S) and ready.recv() == "lives"
    process.terminate()
    process.join(10)
    assert process.exitcode == -END_SIGNAL


@pytest.mark.parametrize("method", ["auto", "spawn"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_may_be_sent_to_all_is_for_the_main_process(
    number: int, method: str
) -> None:
    fork_server.start()
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    os.kill(server, number)
    process, ready = fork_server.launch(
        outlive, number, name="worker", method=method, environment=dict(os.environ)
    )
    assert ready.poll(TIMEOUT_S) and ready.recv() == "lives"
    process.join(10)
    assert process.exitcode == 0
    assert forkserver._forkserver._forkserver_pid == server  # type: ignore[attr-defined]


def test_this_host_allows_to_fork() -> None:
    fork_server.start()
    assert fork_server.is_usable()
