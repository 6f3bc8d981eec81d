# SPDX-License-Identifier: Apache-2.0
"""``semi-pd top`` as a user runs it: a process of its own that asks over HTTP."""

from __future__ import annotations

import json
import os
import pty
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from served_instance import HTTPServer, ServedInstance
from sglang.semi_pd.sm_allocation import SMAllocation

COMMAND = [
    sys.executable,
    str(Path(__file__).parents[2] / "python" / "semi_pd_cli.py"),
    "top",
]
KEY = "key-canary"
PLAIN = {"COLUMNS": "100", "NO_COLOR": "1"}


def top(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **PLAIN, **environment},
    )


@pytest.fixture(scope="module")
def instance() -> ServedInstance:
    instance = ServedInstance()
    instance.live(60)
    return instance


@pytest.fixture(scope="module")
def server(instance: ServedInstance) -> Iterator[HTTPServer]:
    server = HTTPServer(instance)
    yield server
    server.stop()


def test_once_shows_what_matters(instance: ServedInstance, server: HTTPServer) -> None:
    result = top("--url", server.root, "--once")
    assert result.returncode == 0, result.stderr
    split = instance.rotation.current_allocation
    reason = instance.parts.controller.get_status()["last_decision"]["reason"]
    for shown in (
        "running",
        f"prefill {split.prefill_percentage} %",
        f"decode {split.decode_percentage} %",
        "TTFT",
        "TPOT",
        "/1000",
        "decode_TP0 102",
        reason,
    ):
        assert shown in result.stdout, result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100
    assert "\x1b" not in result.stdout
    print(result.stdout)


def test_a_pipe_gets_one_look(server: HTTPServer) -> None:
    assert "TTFT" in top("--url", server.root + "/").stdout


def test_once_takes_less_than_a_second(server: HTTPServer) -> None:
    """Of processor time: what it takes where nothing else runs."""
    times_s = []
    for _ in range(3):
        started_s = children_cpu_s()
        assert top("--url", server.root, "--once").returncode == 0
        times_s.append(children_cpu_s() - started_s)
    print(f"semi-pd top --once: {min(times_s):.2f} s")
    assert min(times_s) < 1.0


def children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_json_is_one_line_for_a_look(server: HTTPServer) -> None:
    result = top("--url", server.root, "--once", "--json")
    (line,) = result.stdout.splitlines()
    view = json.loads(line)
    assert view["asked"].keys() == {"prefill", "decode"}
    assert view["ttft"]["target_ms"] == 100.0
    assert view["blocks"]["by_state"]["free"] + view["blocks"]["total"] > 0


def test_json_goes_on_until_its_reader_leaves(server: HTTPServer) -> None:
    command = [*COMMAND, "--url", server.root, "--json", "--interval", "0.1"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        lines = [process.stdout.readline() for _ in range(3)]
        process.stdout.close()
        assert process.wait(20) == 0
        assert process.stderr.read() == b""
    assert all(json.loads(line)["is_running"] for line in lines)


def test_live_in_a_terminal_until_ctrl_c(
    instance: ServedInstance, server: HTTPServer
) -> None:
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "--url", server.root, "--interval", "0.2"],
        stdin=its,
        stdout=its,
        stderr=its,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "50"},
    )
    os.close(its)
    seen = read_until(ours, b"prefill")
    before = instance.rotation.current_allocation
    share = before.prefill_percentage - 5
    instance.rotation.request_sm_reallocation(SMAllocation(share, 100 - share))
    read_until(ours, f"{before} to {share}/{100 - share}".encode())
    process.send_signal(signal.SIGINT)
    rest = read_until(ours, None)
    assert process.wait(20) == 0
    os.close(ours)
    assert b"\x1b[?1049h" in seen and b"\x1b[?1049l" in rest
    assert b"Traceback" not in seen + rest


def read_until(terminal: int, wanted: bytes | None) -> bytes:
    """What a terminal shows, until it shows something, or its program has left it."""
    seen, deadline = b"", time.monotonic() + 20
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], 0.2)[0]:
            continue
        try:
            seen += os.read(terminal, 65536)
        except OSError:
            return seen
        if wanted is not None and wanted in seen:
            return seen
    raise AssertionError(seen[-2000:])


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (("--url", "http://127.0.0.1:1"), "does not answer"),
        (("--url", "localhost:30000"), "is not an address"),
        (("--url", "file:///etc/passwd"), "is not an address"),
        (("--url", "nonsense"), "is not an address"),
        (("--url", "http://localhost:abc"), "is not an address"),
        (("--interval", "0"), "--interval"),
        (("--interval", "nan"), "--interval"),
    ],
)
def test_mistakes_are_explained(arguments: tuple[str, ...], wrong: str) -> None:
    result = top("--once", *arguments)
    assert result.returncode == 2
    assert wrong in result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_that_does_not_speak_http_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"220 mail.example ESMTP\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        port = listener.getsockname()[1]
        result = top("--once", "--url", f"http://127.0.0.1:{port}")
        thread.join()
    assert result.returncode == 2
    assert "does not answer in HTTP" in result.stderr
    assert "Traceback" not in result.stderr


def test_another_server_is_told_from_one_with_semi_pd(server: HTTPServer) -> None:
    result = top("--once", "--url", server.root + "/nothing")
    assert result.returncode == 2
    assert "HTTP 404" in result.stderr


def test_the_key_comes_from_the_environment() -> None:
    locked = HTTPServer(ServedInstance(KEY))
    without = top("--once", "--url", locked.root)
    assert without.returncode == 2
    assert "SEMI_PD_API_KEY" in without.stderr
    result = top("--once", "--url", locked.root, SEMI_PD_API_KEY=KEY)
    locked.stop()
    assert result.returncode == 0, result.stderr
    assert KEY not in result.stdout
