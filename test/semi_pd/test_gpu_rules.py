# SPDX-License-Identifier: Apache-2.0
"""GPUs that cannot serve are refused by what the driver says of them.

The rules take what ``gpu.read_driver`` reads; ``gpu/test_doctor_gpu.py`` compares that
with ``nvidia-smi`` on a host that has one.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from sglang.semi_pd.errors import ConfigError
from sglang.semi_pd.launch import gpu_rules, mps_daemons
from sglang.semi_pd.launch.gpu import Driver, Gpu, Holder, read_driver, visible
from sglang.semi_pd.launch.typed_flags import CommandLine

GIB = 2**30
H200 = Gpu(
    index=0,
    uuid="GPU-aaaa",
    name="NVIDIA H200",
    capability=(9, 0),
    compute_mode="DEFAULT",
    is_mig=False,
    total_bytes=140 * GIB,
    free_bytes=130 * GIB,
)
SECOND = dataclasses.replace(H200, index=1, uuid="GPU-bbbb")
DRIVER = Driver("580.95", (13, 0), (H200, SECOND))


def typed(model: Path, *flags: str) -> CommandLine:
    names = ("model-path", "quantization", "config", "tp-size", "base-gpu-id")
    spellings = {f"--{name}": f"--{name}" for name in names}
    return CommandLine(["--model-path", str(model), *flags], spellings)


def refused(rule: object, *arguments: object) -> str:
    assert callable(rule)
    with pytest.raises(ConfigError) as raised:
        rule(*arguments)
    assert raised.value.mend
    return str(raised.value)


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (None, [0, 1]),
        ("1,0", [1, 0]),
        ("GPU-bb", [1]),
        ("0,7,1", [0]),
        ("GPU-", []),
        ("", []),
    ],
)
def test_visible_devices(listed: str | None, expected: list[int]) -> None:
    environ = {} if listed is None else {"CUDA_VISIBLE_DEVICES": listed}
    assert [gpu.index for gpu in visible(DRIVER, environ)] == expected


def test_an_old_driver() -> None:
    gpu_rules.require_cuda(DRIVER, "13.0")
    gpu_rules.require_cuda(DRIVER, "12.8")
    old = Driver("535.1", (12, 2), ())
    assert "serves CUDA 12.2" in refused(gpu_rules.require_cuda, old, "13.0")


def test_compute_mode_mig_and_age() -> None:
    gpu_rules.require_shared(H200)
    gpu_rules.require_divisible(H200)
    exclusive = dataclasses.replace(SECOND, compute_mode="EXCLUSIVE_PROCESS")
    assert "nvidia-smi -i 1 -c DEFAULT" in refused(gpu_rules.require_shared, exclusive)
    mig = dataclasses.replace(H200, is_mig=True)
    assert "-mig 0" in refused(gpu_rules.require_divisible, mig)
    pascal = dataclasses.replace(H200, capability=(6, 1))
    assert "Volta" in refused(gpu_rules.require_divisible, pascal)


def test_fp8_without_fp8_of_the_gpus_own() -> None:
    gpu_rules.require_kernels("NVIDIA L4", (8, 9), "fp8")
    gpu_rules.require_kernels("NVIDIA A100", (8, 0), "")
    said = refused(gpu_rules.require_kernels, "NVIDIA A100", (8, 0), "fp8")
    assert "NVIDIA A100" in said and "8.9" in said


def test_fp8_is_read_off_the_flag_or_the_folder(tmp_path: Path) -> None:
    assert gpu_rules.quantisation(typed(tmp_path)) == ""
    assert gpu_rules.quantisation(typed(Path("organisation/model"))) == ""
    assert gpu_rules.quantisation(typed(tmp_path, "--quantization=fp8")) == "fp8"
    config = '{"quantization_config": {"quant_method": "fp8"}}'
    (tmp_path / "config.json").write_text(config)
    assert gpu_rules.quantisation(typed(tmp_path)) == "fp8"


def test_more_ranks_than_gpus_name_them() -> None:
    gpu_rules.require_ranks([H200, SECOND], 0, 1, 2)
    gpu_rules.require_ranks([H200, SECOND], 1, 2, 1)
    said = refused(gpu_rules.require_ranks, [H200, SECOND], 1, 1, 2)
    assert "the GPUs 1, 2, and 2 may be used" in said
    assert "--base-gpu-id" in said


def test_more_ranks_than_memory_nodes() -> None:
    gpu_rules.require_nodes(1, {})
    said = refused(gpu_rules.require_nodes, 1000, {})
    assert "--tp-size 1000" in said and "NUMA node" in said
    gpu_rules.require_nodes(1000, {"SGLANG_CPU_OMP_THREADS_BIND": "0|1"})


def test_weights_larger_than_what_is_free_name_the_holder() -> None:
    gpu_rules.require_room([H200], 16 * GIB, "model")
    full = dataclasses.replace(
        H200, free_bytes=8 * GIB, holders=(Holder(os.getpid(), 130 * GIB),)
    )
    said = refused(gpu_rules.require_room, [full], 16 * GIB, "model")
    assert "need 16.0 GiB and 8.0 of 140.0 GiB are free" in said
    assert f"pid {os.getpid()} (" in said
    gpu_rules.require_room([full, full], 16 * GIB, "model")


def test_only_those_that_the_command_line_uses_are_judged(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(64))
    full = dataclasses.replace(H200, free_bytes=0)
    assert "fit on GPU 0" in refused(gpu_rules.require_served, typed(tmp_path), [full])
    gpu_rules.require_served(typed(tmp_path, "--base-gpu-id=1"), [full, SECOND])


def test_what_a_file_may_say_is_not_taken_as_the_default(tmp_path: Path) -> None:
    assert typed(tmp_path).decides("tp_size", "base_gpu_id")
    with_file = typed(tmp_path, "--config=f.yaml", "--tp-size=2")
    assert with_file.decides("tp_size")
    assert not with_file.decides("tp_size", "base_gpu_id")


def test_an_inherited_daemon_is_refused() -> None:
    said = refused(
        mps_daemons.require_no_stranger, {"CUDA_MPS_PIPE_DIRECTORY": "/other"}
    )
    assert "unset CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_ACTIVE_THREAD_PERCENTAGE" in said


def test_a_strangers_daemon_is_found_by_its_process(tmp_path: Path) -> None:
    """Any program under the daemon's name: found are its name and its environment."""
    program = tmp_path / mps_daemons.CONTROL
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    for pipes, is_refused in (("/tmp/nvidia-mps", True), (str(tmp_path), False)):
        environ = {"CUDA_MPS_PIPE_DIRECTORY": pipes}
        process = subprocess.Popen([program, "30"], env=environ)
        try:
            while not Path(f"/proc/{process.pid}/environ").read_bytes():
                time.sleep(0.001)  # the kernel is not through with exec yet
            assert mps_daemons.Daemon(process.pid, pipes) in list(mps_daemons.running())
            if is_refused:
                said = refused(mps_daemons.require_no_stranger, {})
                assert f"pid {process.pid}" in said
            else:
                mps_daemons.require_no_stranger({})
        finally:
            process.kill()
            process.wait()


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="this host has a GPU")
def test_without_a_driver_the_cores_are_named() -> None:
    assert read_driver() is None
    assert "CPU mode" in gpu_rules.no_gpu()
    kept = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(kept)})
    try:
        assert "a core each" in refused(gpu_rules.no_gpu)
    finally:
        os.sched_setaffinity(0, kept)
