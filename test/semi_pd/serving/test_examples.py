# SPDX-License-Identifier: Apache-2.0
"""Every example runs, as its first lines say, and ends with exit code 0.

Most of them look at one server that ``serve.sh`` started, to save starts; with
``SEMI_PD_SOAK=1`` each also starts its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import process_table
import pytest
import requests
from free_ports import free_port
from harness import REPOSITORY
from workload import IS_SOAK, SERVER_ENVIRONMENT

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("needs_semi_pd")]

EXAMPLES = REPOSITORY / "examples" / "semi_pd"
HELPERS = {"chosen_server.py", "server_process.py", "streaming.py"}
ATTACHED = ("fixed_split", "rotate_live", "crash_recovery", "watch_controller")
START_TIMEOUT_S = 600.0
SERVER_FLAGS = (
    "--dtype=float32",
    "--initial-prefill-sm=60",
    "--initial-decode-sm=40",
    "--slo-ttft-target=20",
    "--slo-tpot-target=500",
    "--slo-window-size=5",
    "--slo-monitoring-interval=1",
)
TOKENS = 300


def run(name: str, *arguments: str) -> str:
    """What an example printed; it ended well."""
    program = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
    ended = subprocess.run(
        program, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False
    )
    print(ended.stdout)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def shell(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where ``serve.sh`` serves; Ctrl-C, while a stream runs, ends it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [str(EXAMPLES / "serve.sh"), str(tiny_model), "--port", str(port)]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with log.open("wb") as out:
        started = subprocess.Popen(
            [*command, *SERVER_FLAGS],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **SERVER_ENVIRONMENT, "PATH": path},
            start_new_session=True,
        )
    try:
        wait_healthy(url, started, log)
        yield url
        with ThreadPoolExecutor(1) as thread:
            answer = thread.submit(generate, url)
            time.sleep(0.5)
            os.killpg(started.pid, signal.SIGINT)
            assert answer.result() == TOKENS
        assert started.wait(60) == 0, log.read_text()[-3000:]
        left = partial(process_table.in_session, started.pid)
        assert process_table.wait_until(lambda: not left(), 5) is not None, left()
        assert "Traceback" not in log.read_text()
    finally:
        process_table.signal_all(process_table.in_session(started.pid), signal.SIGKILL)
        started.wait()


def wait_healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            if requests.get(f"{url}/health", timeout=10).ok:
                return
        except requests.RequestException:
            """It does not listen yet."""
        assert server.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.3)


def generate(url: str) -> int:
    """How many tokens one request gets."""
    sampling = {"max_new_tokens": TOKENS, "ignore_eos": True, "temperature": 0}
    body: dict[str, Any] = {"text": "The sky", "sampling_params": sampling}
    answer = requests.post(f"{url}/generate", json=body, timeout=120)
    answer.raise_for_status()
    return int(answer.json()["meta_info"]["completion_tokens"])


def test_the_split_is_the_one_asked_for(shell: str) -> None:
    assert "'prefill_percentage': 60" in run("fixed_split", "--url", shell)


def test_the_split_moves_under_streams(shell: str) -> None:
    shown = run("rotate_live", "--url", shell)
    assert "moved while streams ran: True; same answers: True" in shown


def test_a_worker_is_killed_under_streams(shell: str) -> None:
    shown = run("crash_recovery", "--url", shell)
    assert "killed while streams ran: True; same answers: True" in shown


def test_the_controller_is_watched(shell: str) -> None:
    shown = run("watch_controller", "--url", shell)
    assert shown.count("TTFT P95") > 1
    assert "mode follow" in shown


@pytest.mark.skipif(not IS_SOAK, reason="SEMI_PD_SOAK=1: one more start")
def test_the_integrated_example(tiny_model: Path) -> None:
    """What it calls is also in the guides' blocks, which always run."""
    shown = run(
        "integrated_example",
        *("--model-path", str(tiny_model), "--port", str(free_port())),
    )
    for part in ("moved to 80/20 meanwhile: True", "memory: ", "latency: ", "(follow)"):
        assert part in shown


def test_the_memory_manager() -> None:
    assert "decode" in run("memory_manager")


@pytest.mark.skipif(not IS_SOAK, reason="SEMI_PD_SOAK=1: a start for each")
@pytest.mark.parametrize("name", [*ATTACHED, "demo"])
def test_with_a_server_of_its_own(name: str, tiny_model: Path) -> None:
    run(name, "--model-path", str(tiny_model))


def test_none_is_forgotten() -> None:
    """Each program is run above, and named in README and both guides."""
    here = Path(__file__).read_text(encoding="utf-8")
    programs = {path.name for path in EXAMPLES.glob("*.*")} - HELPERS
    readme, *guides = (
        (REPOSITORY / page).read_text(encoding="utf-8")
        for page in ("README.md", "docs/semi_pd_guide.md", "docs/semi_pd_guide_zh.md")
    )
    for program in programs:
        assert Path(program).stem in here
        assert all(program in text for text in (readme, *guides)), program
