# SPDX-License-Identifier: Apache-2.0
"""A program that is refused, or whose server fails, learns why and goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from free_ports import free_port
from workload import SERVER_ENVIRONMENT

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("needs_semi_pd")]

TIMEOUT_S = 600.0
THREE_STARTS = """
from multiprocessing import forkserver
from pathlib import Path

import psutil
from sglang.semi_pd.errors import SemiPDError
from sglang.semi_pd.semi_pd_coordinator import create_semi_pd_coordinator
from sglang.srt.server_args import SemiPDPortArgs, ServerArgs


def attempt(**flags):
    server_args = ServerArgs()
    flags |= {"model_path": MODEL, "dtype": "float32", "enable_semi_pd": True}
    for name, value in flags.items():
        setattr(server_args, name, value)
    try:
        with create_semi_pd_coordinator(
            server_args=server_args, port_args=SemiPDPortArgs(port=PORT)
        ):
            print("started")
    except SemiPDError as error:
        print("error:", type(error).__name__, str(error).splitlines()[0])
    forker = psutil.Process(forkserver._forkserver._forkserver_pid)
    directories = list(Path(RUNTIME).glob("sglang-semi-pd/run-*"))
    print("left:", len(forker.children()), len(directories))


attempt(slo_calibration=__file__)
attempt()
attempt()
"""


def run(script: str, runtime: Path, **values: object) -> list[str]:
    """What a program printed; it ended well, and left nothing in its run directory."""
    given = [f"{name} = {value!r}" for name, value in values.items()]
    (runtime / "program.py").write_text("\n".join([*given, textwrap.dedent(script)]))
    ended = subprocess.run(
        [sys.executable, str(runtime / "program.py")],
        env={**os.environ, **SERVER_ENVIRONMENT, "XDG_RUNTIME_DIR": str(runtime)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr[-6000:]
    assert not list(runtime.glob("sglang-semi-pd/run-*"))
    return ended.stdout.splitlines()


def test_the_offline_engine_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    said = run(
        """
        import psutil
        import sglang

        for switch in ("enable_semi_pd", "enable_slo_aware"):
            try:
                sglang.Engine(model_path=MODEL, dtype="float32", **{switch: True})
            except ValueError as error:
                print("error:", type(error).__name__, str(error).splitlines()[0])
            print("children:", len(psutil.Process().children(recursive=True)))
        """,
        tmp_path,
        MODEL=str(tiny_model),
    )
    refused = "error: ConfigError sglang.Engine with Semi-PD is refused"
    assert [line for line in said if line.startswith(("error:", "children:"))] == [
        *(refused, "children: 0"),
        *(refused, "children: 0"),
    ]


def test_a_coordinator_that_cannot_start(tiny_model: Path, tmp_path: Path) -> None:
    """It raises with nothing left: made with bad flags, started with a tokenizer that
    the main process alone needs so early, started as the second one."""
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    (broken / "tokenizer.json").write_text("{}")
    said = run(
        THREE_STARTS,
        tmp_path,
        MODEL=str(broken),
        PORT=free_port(),
        RUNTIME=str(tmp_path),
    )
    said = [line for line in said if line.startswith(("error:", "left:"))]
    assert said == [
        f"error: ConfigError {tmp_path / 'program.py'} is not a calibration",
        "left: 0 0",
        "error: WorkerStartError Failed to initialize Semi-PD Coordinator",
        "left: 0 0",
        "error: WorkerStartError A coordinator was started in this process before",
        "left: 0 0",
    ]
