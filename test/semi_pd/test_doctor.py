# SPDX-License-Identifier: Apache-2.0
"""``semi-pd doctor`` as a user runs it: true answers about this very host."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sglang.semi_pd.doctor import hook_targets
from sglang.semi_pd.launch import mps_daemons, upstream_source
from sglang.semi_pd.server import run_directory

PYTHON = Path(__file__).parents[2] / "python"
DEAD_PID = 999_999_999


def doctor(
    *arguments: str, path: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    search = os.pathsep.join(
        filter(None, (path, str(PYTHON), os.environ.get("PYTHONPATH", "")))
    )
    return subprocess.run(
        [sys.executable, str(PYTHON / "semi_pd_cli.py"), "doctor", *arguments],
        env={**os.environ, "PYTHONPATH": search, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def findings(
    *arguments: str, path: str = "", **environment: str
) -> dict[str, dict[str, str]]:
    """What the doctor found, by the name of the check."""
    result = doctor("--json", *arguments, path=path, **environment)
    report: dict[str, Any] = json.loads(result.stdout)
    checks = {one["check"]: one for one in report["checks"]}
    has_failed = any(one["state"] == "failed" for one in checks.values())
    assert report["ok"] is not has_failed
    assert result.returncode == (1 if has_failed else 0)
    assert not result.stderr
    for one in checks.values():
        assert one["state"] != "failed" or one["mend"], one
    return checks


def processor_s() -> float:
    """What children have used so far; other work on the machine does not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """A private place in the stead of the user's own."""
    return tmp_path


def test_versions_and_hooks_are_those_of_this_environment(runtime: Path) -> None:
    checks = findings(XDG_RUNTIME_DIR=str(runtime))
    assert checks["python"]["said"] == platform.python_version()
    assert checks["sglang"]["said"] == importlib.metadata.version("sglang")
    assert checks["torch"]["said"] == importlib.metadata.version("torch")
    assert checks["hooks"]["state"] == "ok", checks["hooks"]
    assert checks["environment"]["state"] == "ok"
    assert checks["run directory"]["said"] == str(runtime / "sglang-semi-pd")
    assert checks["instances"]["said"].startswith("no server runs")


def test_it_costs_under_a_second_and_imports_nothing_heavy(runtime: Path) -> None:
    before, started_s = processor_s(), time.perf_counter()
    doctor(XDG_RUNTIME_DIR=str(runtime))
    took_s, worked_s = time.perf_counter() - started_s, processor_s() - before
    print(f"semi-pd doctor: {took_s:.2f} s, {worked_s:.2f} s of processor time")
    assert worked_s < 1.0
    code = (
        "import sys, semi_pd_cli; semi_pd_cli.use_light_namespace()\n"
        "from sglang.semi_pd.cli import command_line\n"
        "command_line.main(['doctor', '--json'])\n"
        "print([m for m in ('torch', 'zmq', 'sglang.srt', 'huggingface_hub')"
        " if m in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PYTHON,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.stderr.strip() == "[]"


def test_a_line_for_each_check_and_the_mend_below(runtime: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        result = doctor("--port", str(port), XDG_RUNTIME_DIR=str(runtime))
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    place = next(n for n, line in enumerate(lines) if line.startswith("✗ port"))
    assert f"in use by pid {os.getpid()} (" in lines[place]
    assert lines[place + 1].strip().startswith("mend: stop that process or use --port")
    assert lines[-1].endswith(
        "a server cannot start here (docs/semi_pd_guide.md#the-doctor)"
    )
    marked = [line for line in lines if line[:2] in ("✓ ", "! ", "✗ ", "– ")]
    assert len(marked) >= 12


def test_another_sglang_is_refused_with_the_tested_one_named(
    runtime: Path, tmp_path: Path
) -> None:
    fake = tmp_path / "site" / "sglang"
    (fake / "srt").mkdir(parents=True)
    (fake / "__init__.py").touch()
    (fake / "_version.py").write_text("__version__ = version = '0.5.18'\n")
    checks = findings(path=str(fake.parent), XDG_RUNTIME_DIR=str(runtime))
    assert checks["sglang"]["state"] == "failed"
    assert "0.5.18" in checks["sglang"]["said"]
    assert checks["sglang"]["mend"] == "pip install sglang==0.5.17"
    assert checks["hooks"]["state"] == "failed"


def test_entry_points_of_an_older_install_are_found(
    runtime: Path, tmp_path: Path
) -> None:
    info = tmp_path / "site" / "sglang_semi_pd-0.0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Name: sglang-semi-pd\nVersion: 0.0.1\n")
    (info / "entry_points.txt").write_text(
        "[sglang.srt.plugins]\nsemi_pd = sglang.semi_pd.was_here:register\n"
    )
    checks = findings(path=str(info.parent), XDG_RUNTIME_DIR=str(runtime))
    assert checks["plugins"]["state"] == "failed"
    assert "sglang.semi_pd.was_here:register" in checks["plugins"]["said"]


def test_a_variable_in_the_way_is_named(runtime: Path) -> None:
    checks = findings(SGLANG_PLUGINS="other", XDG_RUNTIME_DIR=str(runtime))
    assert checks["environment"]["state"] == "failed"
    assert "SGLANG_PLUGINS=other" in checks["environment"]["said"]


def test_hook_targets_are_looked_up_in_the_source() -> None:
    root = upstream_source.root()
    scheduler = "sglang.srt.managers.scheduler.Scheduler"
    wrong = [
        f"{scheduler}.no_such_method",
        "sglang.srt.managers.scheduler.NoSuchClass",
        "sglang.srt.no_such_module.function",
        # A method of another class in the same file.
        "sglang.srt.mem_cache.memory_pool.MLATokenToKVPool._create_buffers_normal",
    ]
    right = [
        f"{scheduler}.run_batch",
        "sglang.srt.managers.load_snapshot.shm_path_for",
        # Of a base class in another file.
        "sglang.srt.managers.tokenizer_manager.TokenizerManager.get_internal_state",
    ]
    assert hook_targets.missing([*wrong, *right], root) == wrong


def test_an_open_run_directory_is_refused(runtime: Path) -> None:
    (runtime / "sglang-semi-pd").mkdir(mode=0o755)
    checks = findings(XDG_RUNTIME_DIR=str(runtime))
    assert checks["run directory"]["state"] == "failed"
    assert "chmod 700" in checks["run directory"]["mend"]


def test_a_run_directory_that_cannot_be_made_is_refused(runtime: Path) -> None:
    (runtime / "sglang-semi-pd").write_text("a file")
    checks = findings(XDG_RUNTIME_DIR=str(runtime))
    assert checks["run directory"]["state"] == "failed"
    assert "set XDG_RUNTIME_DIR" in checks["run directory"]["mend"]


def test_directories_of_dead_and_living_servers(runtime: Path) -> None:
    base = runtime / "sglang-semi-pd"
    base.mkdir(mode=0o700)
    (base / f"run-{DEAD_PID}-1-abc").mkdir()
    stat = Path(f"/proc/{os.getpid()}/stat").read_text()
    started = stat.rpartition(")")[2].split()[19]
    (base / f"run-{os.getpid()}-{started}-abc").mkdir()
    checks = findings(XDG_RUNTIME_DIR=str(runtime))
    said = checks["instances"]["said"]
    assert said == f"serving now: pid {os.getpid()}; 1 directories of dead servers"
    assert checks["instances"]["state"] == "note"


def test_a_worker_that_outlived_its_server_is_named(runtime: Path) -> None:
    """A process under a worker's title whose parent is gone."""
    script = "exec -a sglang::semi_pd_decode sleep 60 >/dev/null 2>&1 & echo $!"
    shell = ["bash", "-c", script]
    started = subprocess.run(shell, capture_output=True, text=True, check=True)
    pid = int(started.stdout)
    try:
        checks = findings(XDG_RUNTIME_DIR=str(runtime))
        assert checks["processes"]["state"] == "failed"
        assert str(pid) in checks["processes"]["mend"].split()
    finally:
        os.kill(pid, signal.SIGKILL)


@contextmanager
def daemon(
    program: Path, pipes: Path, *, inside: tuple[str, ...] = ()
) -> Iterator[int]:
    """A process under the MPS daemon's name, with its pipes' directory.

    Args:
        inside: a command that runs it.
    """
    program.parent.mkdir(exist_ok=True)
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    environment = {"CUDA_MPS_PIPE_DIRECTORY": str(pipes)}
    process = subprocess.Popen([*inside, program, "60"], env=environment)
    try:
        while not any(one.pipes == str(pipes) for one in mps_daemons.visible()):
            assert process.poll() is None  # the kernel is not done
        yield process.pid
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("place", "state"), [("", "note"), ("elsewhere", "failed")])
def test_the_mps_daemon_of_a_dead_server_is_named(
    runtime: Path, tmp_path: Path, place: str, state: str
) -> None:
    base = runtime / place / "sglang-semi-pd"
    pipes = base / f"run-{DEAD_PID}-1-abc" / "mps"
    with daemon(tmp_path / "nvidia-cuda-mps-control", pipes) as pid:
        found = findings(XDG_RUNTIME_DIR=str(runtime))["MPS daemons"]
        assert found["state"] == state
        assert f"pid {pid}" in found["said"]
        mend = "the next start ends it" if state == "note" else f"kill {pid}"
        assert mend in found["mend"]


def test_the_mps_daemon_of_another_program_is_not_named(tmp_path: Path) -> None:
    """Whatever its directory is called."""
    with daemon(tmp_path / "nvidia-cuda-mps-control", tmp_path / "run-42" / "mps"):
        found = findings(XDG_RUNTIME_DIR=str(tmp_path))["MPS daemons"]
    assert found["state"] == "ok"


def test_the_mps_daemon_of_a_server_in_a_container_is_left_alone(
    runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root sees it from outside: its path is as here, its server's pid is another."""
    container = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    if subprocess.run([*container, "true"], check=False).returncode:
        pytest.skip("a pid namespace cannot be made here")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    pipes = run_directory.base_directory() / f"run-{DEAD_PID}-1-abc" / "mps"
    program = tmp_path / "nvidia-cuda-mps-control"
    with daemon(program, pipes, inside=container) as pid:
        found = findings(XDG_RUNTIME_DIR=str(runtime))["MPS daemons"]
        assert found["state"] == "ok", pid
        run_directory.create()
        assert any(one.pipes == str(pipes) for one in mps_daemons.visible())


def test_the_next_start_ends_the_mps_daemon_of_a_dead_server(
    runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not that of a living one."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setattr(mps_daemons, "QUIT_TIMEOUT_S", 0.1)
    program = tmp_path / "nvidia-cuda-mps-control"
    living = run_directory.create()
    dead = living.with_name(f"run-{DEAD_PID}-1-abc")
    dead.mkdir()
    with (
        daemon(program, living / "mps") as kept,
        daemon(program.with_name("2") / program.name, dead / "mps") as lost,
    ):
        run_directory.create()
        assert not dead.exists()
        assert [one.pid for one in mps_daemons.in_directory(living)] == [kept]
        assert not mps_daemons.in_directory(dead), lost
