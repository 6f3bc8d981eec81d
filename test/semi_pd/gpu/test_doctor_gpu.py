# SPDX-License-Identifier: Apache-2.0
"""What the doctor says of GPUs is what ``nvidia-smi`` says of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sglang.semi_pd.launch import gpu_rules, mps_daemons
from sglang.semi_pd.launch.gpu import read_driver

PYTHON = Path(__file__).parents[3] / "python"
MIB = 2**20
QUERY = "index,uuid,name,compute_mode,memory.total,driver_version"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="no NVIDIA driver"),
]


def nvidia_smi() -> list[list[str]]:
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [[field.strip() for field in line.split(",")] for line in lines.splitlines()]


def test_the_driver_is_read_as_nvidia_smi_reads_it() -> None:
    driver = read_driver()
    assert driver is not None
    for gpu, line in zip(driver.gpus, nvidia_smi(), strict=True):
        index, uuid, name, mode, total_mib, version = line
        assert (str(gpu.index), gpu.uuid, gpu.name) == (index, uuid, name)
        assert gpu.compute_mode == mode.upper().replace(" ", "_")
        assert abs(gpu.total_bytes / MIB - int(total_mib)) < 1024
        assert gpu.capability >= gpu_rules.VOLTA
        assert 0 < gpu.free_bytes <= gpu.total_bytes
        assert driver.version == version


@pytest.fixture
def runtime() -> Iterator[str]:
    """A short path: the daemon's sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="spd-", dir="/tmp") as path:
        yield path


def test_the_doctor_starts_and_ends_a_daemon(runtime: str) -> None:
    """In about a second, and no MPS daemon stays."""
    before = set(mps_daemons.running())
    started_s = time.monotonic()
    result = subprocess.run(
        [sys.executable, str(PYTHON / "semi_pd_cli.py"), "doctor", "--json"],
        env={**os.environ, "XDG_RUNTIME_DIR": runtime},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    print(f"semi-pd doctor: {time.monotonic() - started_s:.2f} s\n{result.stdout}")
    report: dict[str, Any] = json.loads(result.stdout)
    checks = {one["check"]: one for one in report["checks"]}
    assert checks["driver"]["state"] == "ok", checks["driver"]
    assert checks["GPU 0"]["state"] == "ok", checks["GPU 0"]
    if shutil.which(mps_daemons.CONTROL):
        assert checks["MPS"]["state"] == "ok", checks["MPS"]
    assert set(mps_daemons.running()) == before
