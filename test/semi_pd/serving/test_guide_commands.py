# SPDX-License-Identifier: Apache-2.0
"""Each command of the documents that starts a server does; what asks one is answered.

With ``SEMI_PD_SOAK=1``: a start for each. ``test_shell_blocks.py`` holds every command
to its parser at every run.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import REPOSITORY, START_TIMEOUT_S, Server
from test_shell_blocks import COMMANDS, LAUNCHES
from workload import IS_SOAK

pytestmark = [
    pytest.mark.server,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(not IS_SOAK, reason="SEMI_PD_SOAK=1: a start for each"),
]

BIN = Path(sys.executable).parent
PAGES = ("README.md", "semi_pd_guide.md", "semi_pd_guide_zh.md")
ASKING = (["curl"], ["semi-pd", "top"], ["python", "benchmark/semi_pd/record_run.py"])
UPSTREAMS_FILE = "/dev/shm/sglang_loads_"
ANOTHER = "http://HOST:30000"


def distinct(starts: tuple[list[str], ...]) -> Iterator[list[str]]:
    """The documents' commands that begin so, each once."""
    seen = set()
    for page, command in COMMANDS:
        words = [word.strip() for word in shlex.split(command, comments=True)]
        words = [word for word in words if word]
        is_one = any(words[: len(start)] == start for start in starts)
        if page in PAGES and is_one and tuple(words) not in seen:
            seen.add(tuple(words))
            yield words


@pytest.mark.parametrize("words", list(distinct(LAUNCHES)), ids=" ".join)
def test_a_server_starts_answers_and_ends(words: list[str], tiny_model: Path) -> None:
    program, *rest = (w for w in words if w not in ("--model-path", "MODEL"))
    command = [str(BIN / program), *rest]
    server = Server(name="guide", model=tiny_model, command=command)
    try:
        server.start().wait_ready()
        code = server.stop()
        is_upstreams = "--enable-unified-memory" in words  # SGLang kills itself then
        expected = -signal.SIGKILL if is_upstreams else 0
        assert code == expected, server.failure(f"exit code {code}")
        upstreams = UPSTREAMS_FILE if is_upstreams else ()
        assert [
            one for one in server.leftovers() if not one.startswith(upstreams)
        ] == []
    finally:
        server.clean()


def test_what_asks_a_server(tiny_model: Path, tmp_path: Path) -> None:
    """On one that was started as the quick start says."""
    flags = ["--enable-semi-pd-coordinator", "--dtype=float32"]
    server = Server(name="asked", model=tiny_model, flags=flags)
    asked = list(distinct(ASKING))
    assert len(asked) >= 7
    try:
        server.start().wait_ready()
        for words in asked:
            ask(words, str(server.port), tmp_path)
    finally:
        server.clean()


def ask(words: list[str], port: str, place: Path) -> None:
    """Run it against this port; a view without an end is watched for a moment."""
    typed = [
        word.replace(ANOTHER, "http://localhost:30000").replace("30000", port)
        for word in words
    ]
    if typed[:2] == ["semi-pd", "top"] and "--url" not in typed:
        typed += ["--url", f"http://localhost:{port}"]
    if typed[0] == "curl":
        typed[1:1] = ["--fail"]
    if typed[0] == "python":
        typed[1] = str(REPOSITORY / typed[1])
    is_endless = typed[0] == "semi-pd" and "--once" not in typed
    if is_endless:
        typed = ["timeout", "--signal=INT", "5", *typed]
    ended = subprocess.run(
        typed,
        cwd=place,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
        check=False,
    )
    assert ended.returncode in ((0, 124) if is_endless else (0,)), (typed, ended.stderr)
    assert ended.stdout, typed
    assert "Traceback" not in ended.stderr, ended.stderr
