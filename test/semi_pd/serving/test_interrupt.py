# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C while a server starts; what one that serves does: ``test_integration``."""

from __future__ import annotations

import time
from pathlib import Path

import process_table
import pytest
from harness import COMMON_FLAGS, START_TIMEOUT_S, Server

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("needs_semi_pd")]

GRACE_S = 60.0


@pytest.mark.parametrize(
    ("phase", "later_s"),
    [("importing SGLang", 1.0), ("starting resident, prefill and decode", 0.0)],
)
def test_ctrl_c_while_starting(tiny_model: Path, phase: str, later_s: float) -> None:
    """One line, no traceback, exit code 130, and nothing stays."""
    flags = [*COMMON_FLAGS, "--enable-semi-pd"]
    server = Server(name="interrupted", model=tiny_model, flags=flags)
    try:
        server.start()
        said = process_table.wait_until(lambda: phase in server.log(), START_TIMEOUT_S)
        assert said is not None, server.failure("no word of its start")
        time.sleep(later_s)
        started_s = time.monotonic()
        server.interrupt()
        code = server.wait_exit(GRACE_S)
        print(f"main ended {time.monotonic() - started_s:.1f} s after Ctrl-C")
        assert code == 130, server.failure(f"exit code {code}")
        assert not server.leftovers()
        assert "Traceback" not in server.log(), server.failure("a traceback")
        ends = [line for line in server.log().splitlines() if "ending" in line]
        assert ends == ["semi-pd: SIGINT while starting; ending"]
    finally:
        server.clean()


def test_ctrl_c_before_the_first_request_is_answered(tiny_model: Path) -> None:
    """SGLang's own: it would ask the server for two minutes more, then kill it."""
    flags = [*COMMON_FLAGS, "--enable-semi-pd"]
    server = Server(name="unasked", model=tiny_model, flags=flags)
    try:
        server.start()
        said = process_table.wait_until(
            lambda: "Application startup complete" in server.log(), START_TIMEOUT_S
        )
        assert said is not None, server.failure("it does not listen")
        server.interrupt()
        code = server.wait_exit(GRACE_S)
        assert code == 0, server.failure(f"exit code {code}")
        assert not server.leftovers()
        assert "Traceback" not in server.log(), server.failure("a traceback")
    finally:
        server.clean()
