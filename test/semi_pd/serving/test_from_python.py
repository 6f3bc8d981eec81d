# SPDX-License-Identifier: Apache-2.0
"""A program that is refused, or whose server fails, learns why and goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from workload import SERVER_ENVIRONMENT

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("needs_semi_pd")]

TIMEOUT_S = 600.0


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
