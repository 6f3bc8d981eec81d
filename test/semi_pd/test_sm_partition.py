# SPDX-License-Identifier: Apache-2.0
"""Which backend divides what, on a host without a GPU."""

from __future__ import annotations

import logging
import os
import shutil

import pytest
from sglang.semi_pd.errors import ConfigError, RotationError
from sglang.semi_pd.partition.fixed_split import FixedSplit, SplitBeforeStart
from sglang.semi_pd.partition.mps import CONTROL, MPSDaemon, MPSError
from sglang.semi_pd.partition.sm_partition import start_partition
from sglang.semi_pd.sm_allocation import SMAllocation
from sglang.semi_pd.utils import InstanceRole

SPLIT = SMAllocation(50, 50)


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
