# SPDX-License-Identifier: Apache-2.0
"""Whose run directory is swept: not that of a server whose pid means nothing here."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sglang.semi_pd.server import run_directory

PYTHON = Path(__file__).parents[2] / "python"
OF_ELSEWHERE = "run-999999999-1-abc"
SERVER = """
import subprocess, sys
import semi_pd_cli
semi_pd_cli.use_light_namespace()
from sglang.semi_pd.server import run_directory
print(run_directory.create(), flush=True)
subprocess.Popen(["sleep", "5"], stdout=subprocess.DEVNULL)
print("has a child", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return run_directory.base_directory()


def test_a_server_in_another_container_keeps_its_directory_until_it_dies(
    base: Path,
) -> None:
    """Both have ``/tmp``; the pid in the name is of nobody here. Its child is none."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        cwd=PYTHON,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with server:
        assert server.stdout
        made = Path(server.stdout.readline().strip())
        assert server.stdout.readline() == "has a child\n"
        elsewhere = made.rename(base / OF_ELSEWHERE)
        run_directory.remove(run_directory.create())
        assert elsewhere.exists()
        assert run_directory.owner_is_alive(elsewhere)
        server.send_signal(signal.SIGKILL)
        server.wait()
        assert not run_directory.owner_is_alive(elsewhere)
        run_directory.remove(run_directory.create())
        assert not elsewhere.exists()


def test_a_directory_that_was_removed_is_let_go_of(base: Path) -> None:
    directory = run_directory.create()
    assert run_directory.owner_is_alive(directory)
    elsewhere = directory.rename(base / OF_ELSEWHERE)
    assert run_directory.owner_is_alive(elsewhere)
    run_directory.remove(directory)
    assert not run_directory.owner_is_alive(elsewhere)
