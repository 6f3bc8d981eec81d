# SPDX-License-Identifier: Apache-2.0
"""The status names the processes that serve, not those made ready beside them."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.semi_pd.server import instance_status
from sglang.semi_pd.server.worker import Worker, WorkerPair
from sglang.semi_pd.utils import InstanceRole
from status_document import Parts

PROCESSES = multiprocessing.get_context("spawn")
ROLES = (InstanceRole.PREFILL, InstanceRole.DECODE)


class Processes:
    """The processes of an instance that only sleep."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self.started: list[Worker] = []

    def start(self, role: InstanceRole, generation: int) -> Worker:
        process = PROCESSES.Process(target=time.sleep, args=(600,))
        process.start()
        path = self._place / f"{role.value}-{generation}"
        spec: Any = SimpleNamespace(
            role=role,
            tp_rank=0,
            generation=generation,
            heartbeat_path=path,
            share_path=path,
        )
        worker = Worker(spec, process, PROCESSES.Pipe()[0])
        self.started.append(worker)
        return worker

    def pair(self, generation: int) -> WorkerPair:
        workers = tuple(self.start(role, generation) for role in ROLES)
        return WorkerPair(generation, workers)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    group = Processes(tmp_path)
    yield group
    for worker in group.started:
        worker.process.kill()
        worker.close()


def status_of(group: Any) -> dict[str, Any]:
    parts = Parts()
    coordinator: Any = SimpleNamespace(
        group=group,
        is_running=True,
        realised=None,
        supervisor=None,
        readiness=SimpleNamespace(as_status=dict),
        partition=SimpleNamespace(name="mps"),
        rotation=parts.rotation,
        slo=parts.controller,
        metrics_aggregator=parts.aggregator,
        get_unified_memory_usage=lambda: None,
    )
    return instance_status.describe(coordinator)


def test_a_standby_does_not_take_the_place_of_who_serves(processes: Processes) -> None:
    pair, standby = processes.pair(1), processes.pair(2)
    group = SimpleNamespace(serving=pair.workers, pair=pair, standby=standby)
    standby.workers[0].process.kill()
    standby.workers[0].process.join()
    status = status_of(group)
    assert status["components"] == {
        f"{worker.spec.role.value}_TP0": {
            "pid": worker.pid,
            "generation": 1,
            "is_alive": True,
        }
        for worker in pair.workers
    }
    alive = {name: one["is_alive"] for name, one in status["standbys"].items()}
    assert alive == {"prefill_TP0": False, "decode_TP0": True}
    assert status["standbys"]["decode_TP0"]["generation"] == 2


def test_nothing_is_a_standby_between_rotations(processes: Processes) -> None:
    pair = processes.pair(1)
    group = SimpleNamespace(serving=pair.workers, pair=pair, standby=None)
    assert status_of(group)["standbys"] == {}
    assert status_of(None)["components"] == {}
