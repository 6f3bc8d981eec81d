# SPDX-License-Identifier: Apache-2.0
"""Spare processes become what they are told, once, and no dead one is used."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import psutil
import pytest
from sglang.semi_pd.server.spares import SparePool

pytestmark = pytest.mark.upstream

IMPORT_TIMEOUT_S = 300.0


def tell(word: str, ready: Connection) -> None:
    ready.send((word, os.getpid(), os.environ.get("SPARE_TEST")))


def until(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def pool() -> Iterator[SparePool]:
    pool = SparePool(2, preload="json")
    pool.refill()
    assert pool.waiting == 0, "a spare takes its time"
    until(lambda: pool.waiting == 2, IMPORT_TIMEOUT_S)
    yield pool
    pool.close()


def test_the_life_of_spares(pool: SparePool) -> None:
    children = psutil.Process().children()
    spares = {c.pid for c in children if "semi_pd_spare" in " ".join(c.cmdline())}
    assert len(spares) == 2

    one, *_ = spares
    os.kill(one, signal.SIGKILL)
    until(lambda: pool.waiting == 1, 10)

    environment = {**os.environ, "SPARE_TEST": "told"}
    process, ready = pool.launch(tell, "hello", name="worker", environment=environment)
    [other] = spares - {one}
    assert ready.recv() == ("hello", other, "told")
    process.join(10)
    assert (process.pid, process.exitcode, process.name) == (other, 0, "worker")
    assert pool.waiting == 0

    pool.refill()
    pool.close()
    assert not [c for c in psutil.Process().children() if c.pid in spares]
