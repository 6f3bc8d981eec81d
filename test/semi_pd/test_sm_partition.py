# SPDX-License-Identifier: Apache-2.0
"""Which backend divides what, on a host without a GPU."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import threading
from contextlib import ExitStack

import pytest
from sglang.semi_pd.errors import ConfigError, RotationError
from sglang.semi_pd.launch import mps_daemons
from sglang.semi_pd.partition import cpu_share, mps
from sglang.semi_pd.partition.cpu_share import CoreSplit, cores_for, take_cores
from sglang.semi_pd.partition.fixed_split import FixedSplit, SplitBeforeStart
from sglang.semi_pd.partition.mps import CONTROL, MPSDaemon, MPSError
from sglang.semi_pd.partition.sm_partition import start_partition
from sglang.semi_pd.sm_allocation import SMAllocation
from sglang.semi_pd.utils import InstanceRole

SPLIT = SMAllocation(50, 50)
EVERYTHING = SMAllocation(100, 100)  # other cores than 50/50, even where there are two
PREFILL, DECODE = InstanceRole.PREFILL, InstanceRole.DECODE


@pytest.mark.parametrize(
    ("asked", "got"),
    [("auto", "green"), ("green", "green"), ("mps", "mps"), ("none", "none")],
)
def test_backend_of_a_cpu_host(tmp_path, asked, got):
    partition = start_partition(asked, "cpu", tmp_path)
    assert partition.name == got
    cores = {role: partition.cores(role, SPLIT) for role in InstanceRole}
    if got == "none":
        assert not any(cores.values()), "all cores for everybody"
        return
    own = os.sched_getaffinity(0)
    assert cores[InstanceRole.RESIDENT] == own
    prefill, decode = cores[InstanceRole.PREFILL], cores[InstanceRole.DECODE]
    assert prefill and decode
    assert len(own) == 1 or not prefill & decode


@pytest.mark.skipif(shutil.which(CONTROL) is not None, reason="this host has MPS")
def test_without_mps_auto_takes_turns_and_says_so(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert start_partition("auto", "cuda", tmp_path).name == "none"
    assert "The SMs are not divided; the workers take turns" in caplog.text
    for asked in ("mps", "green"):
        with pytest.raises(MPSError, match=CONTROL) as refused:
            start_partition(asked, "cuda", tmp_path)
        assert refused.value.mend


def test_the_daemon_sees_every_gpu_and_its_clients_those_of_the_server(
    tmp_path, monkeypatch
):
    """A daemon that sees GPU 2 alone calls it 0, and its clients would ask for 2."""
    program = tmp_path / CONTROL  # in the place of NVIDIA's, which needs a GPU
    program.write_text('#!/bin/sh\nenv > "$CUDA_MPS_PIPE_DIRECTORY/control"\n')
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    daemon = MPSDaemon(tmp_path)
    daemon.start()
    seen = (tmp_path / "mps" / "control").read_text()
    assert "CUDA_MPS_PIPE_DIRECTORY=" in seen
    assert "CUDA_VISIBLE_DEVICES" not in seen
    assert "CUDA_VISIBLE_DEVICES" not in daemon.client_environment(100)


def test_a_daemon_that_does_not_answer_is_ended(tmp_path, monkeypatch):
    """It is nobody's child, and its directory is going to be removed."""
    program, child = tmp_path / CONTROL, tmp_path / "child" / CONTROL
    child.parent.mkdir()
    shutil.copy(shutil.which("sleep"), child)
    program.write_text(f"#!/bin/sh\n[ -z $1 ] || setsid {child} 60 &\n")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(mps, "START_TIMEOUT_S", 0.5)
    monkeypatch.setattr(mps_daemons, "QUIT_TIMEOUT_S", 0.1)
    with pytest.raises(MPSError, match="no control pipe"):
        MPSDaemon(tmp_path).start()
    assert not mps_daemons.in_directory(tmp_path)


@pytest.mark.parametrize("asked", ["auto", "green", "mps", "none"])
def test_an_inherited_daemon_is_refused_by_every_backend(tmp_path, monkeypatch, asked):
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "/other")
    with pytest.raises(ConfigError, match="/other is refused"):
        start_partition(asked, "cuda", tmp_path)


def test_a_split_that_is_fixed_says_why_it_does_not_move():
    fixed = FixedSplit("nothing is divided", "use another partition backend")
    assert not fixed.can_move
    with pytest.raises(RotationError, match="nothing is divided"):
        fixed.apply(SPLIT)


@pytest.mark.parametrize("can_move", [True, False])
def test_before_the_start_nothing_moves_yet(can_move):
    split = SplitBeforeStart(can_move=can_move)
    assert split.can_move is can_move
    with pytest.raises(RotationError, match="has not started"):
        split.apply(SPLIT)


class Workers:
    """A process for each role; prefill's takes cores only when it is told to go on."""

    def __init__(self, stack):
        self.process = {
            role: stack.enter_context(subprocess.Popen(["sleep", "60"]))
            for role in (PREFILL, DECODE)
        }
        self.is_busy, self.queue = False, []
        for role in (PREFILL, DECODE):
            self._take(role, cores_for(role, SPLIT))

    def send(self, role, message):
        if role is PREFILL and self.is_busy:
            self.queue.append(message.cores)
        else:
            self._take(role, message.cores)

    def go_on(self):
        for cores in self.queue:
            self._take(PREFILL, cores)

    def cores(self):
        return {r: os.sched_getaffinity(p.pid) for r, p in self.process.items()}

    def end(self):
        for process in self.process.values():
            process.kill()

    def _take(self, role, cores):
        os.sched_setaffinity(self.process[role].pid, cores)


@pytest.fixture
def workers():
    with ExitStack() as stack:
        workers = Workers(stack)
        stack.callback(workers.end)
        yield workers


def split_of(workers):
    return CoreSplit(
        workers.send, lambda role: [workers.process[role].pid], lambda: SPLIT
    )


@pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="one core has one split")
def test_a_move_of_cores_that_one_worker_does_not_take_is_taken_back(
    workers, monkeypatch
):
    """By the other one at once, by the late one when it gets to it."""
    monkeypatch.setattr(cpu_share, "MOVE_TIMEOUT_S", 0.05)
    before = workers.cores()
    split_of(workers).apply(EVERYTHING)
    assert workers.cores() == {r: cores_for(r, EVERYTHING) for r in (PREFILL, DECODE)}
    split_of(workers).apply(SPLIT)
    workers.is_busy = True
    with pytest.raises(RotationError, match="did not take its cores"):
        split_of(workers).apply(EVERYTHING)
    assert workers.cores() == before
    workers.go_on()
    assert workers.cores() == before


def test_threads_that_end_meanwhile_do_not_stop_a_move():
    own = frozenset(os.sched_getaffinity(0))
    for _ in range(20):
        may_end = threading.Event()
        threads = [threading.Thread(target=may_end.wait) for _ in range(100)]
        for thread in threads:
            thread.start()
        may_end.set()
        take_cores(own)
        for thread in threads:
            thread.join()
