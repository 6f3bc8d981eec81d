#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The whole of it once: start, serve, look inside, stop with Ctrl-C.

Runs under pytest, and by itself:

    python test/semi_pd/test_integration.py
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "serving"))

import client  # noqa: E402
import process_table  # noqa: E402
import pytest  # noqa: E402
from harness import COMMON_FLAGS, Server, make_tiny_model  # noqa: E402
from workload import endless, prompt  # noqa: E402

FLAGS = (*COMMON_FLAGS, "--enable-semi-pd-coordinator")
STREAMS = 4
TOKENS = 32
GRACE_S = 60.0
INTERRUPTED = (0, 130)
"""Exit codes of a server that was stopped by Ctrl-C."""


def check_streams(server: Server) -> None:
    """Concurrent streams give every token, and the same ones twice."""
    bodies = [endless(prompt(50 + 300 * n, seed=n), TOKENS) for n in range(STREAMS)]
    start = time.monotonic()
    first = [one["output_ids"] for one in client.stream_all(server.url, bodies)]
    second = [one["output_ids"] for one in client.stream_all(server.url, bodies)]
    assert [len(ids) for ids in first] == [TOKENS] * STREAMS
    assert first == second
    print(f"{2 * STREAMS} streams of {TOKENS} tokens: {time.monotonic() - start:.1f} s")


def check_text(server: Server) -> None:
    """A chat answer has text and usage."""
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "What is the weather like today?"}],
        "max_tokens": 16,
        "temperature": 0,
    }
    reply = server.post("/v1/chat/completions", body).json()
    assert reply["usage"]["completion_tokens"] > 0
    print(f"chat: {reply['choices'][0]['message']['content']!r}")


def check_processes(server: Server) -> None:
    """One process for each role."""
    print(process_table.describe(server.processes()))
    roles = [server.role(role).pid for role in process_table.ROLES]
    assert len(set(roles)) == len(process_table.ROLES)


def check_status(server: Server) -> None:
    """The status is there, and an idle server holds nothing."""
    waited = process_table.wait_until(
        lambda: server.memory_usage()["allocated_rows"] == 0, 10
    )
    assert waited is not None, server.memory_usage()
    print(f"memory: {server.memory_usage()}")


def check_interrupt(server: Server) -> None:
    """Ctrl-C ends it in good order."""
    start = time.monotonic()
    server.interrupt()
    code = server.wait_exit(GRACE_S)
    if code not in INTERRUPTED:
        raise server.failure(f"exit code {code} after Ctrl-C")
    assert process_table.wait_until(lambda: not server.leftovers(), 5) is not None, (
        server.leftovers()
    )
    print(f"stopped {time.monotonic() - start:.1f} s after Ctrl-C, nothing left")


def run(model: Path) -> None:
    """Start a server on ``model`` and make every check on it."""
    server = Server(name="semi-pd", model=model, flags=FLAGS)
    try:
        server.start().wait_ready()
        print(f"ready after {server.ready_s:.1f} s")
        check_streams(server)
        check_text(server)
        check_processes(server)
        check_status(server)
        check_interrupt(server)
    finally:
        server.clean()


@pytest.mark.server
def test_integration(tiny_model: Path) -> None:
    """All of it."""
    run(tiny_model)


def main() -> int:
    """As a script: exit code 0 if everything holds."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            run(make_tiny_model(Path(folder) / "tiny-llama"))
        except AssertionError as error:
            print(f"FAILED: {error}", file=sys.stderr)
            return 1
    print("integration test passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
