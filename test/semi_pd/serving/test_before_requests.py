# SPDX-License-Identifier: Apache-2.0
"""What a server does that no client has asked for anything yet, not even its own.

SGLang begins to hear its schedulers with the first request, and ``/health`` is one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import process_table
import pytest
import requests
from harness import COMMON_FLAGS, START_TIMEOUT_S, Server

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("needs_semi_pd")]

STATUS, REALLOCATE = "/semi_pd/status", "/semi_pd/reallocate"
MOVE_TIMEOUT_S = 180.0


def serves(server: Server) -> bool:
    """Whether it answers a request that no scheduler hears of."""
    server.require_alive()
    try:
        reply = requests.get(server.url + STATUS, timeout=10)
    except requests.RequestException:
        return False
    return reply.status_code == 200 and bool(reply.json()["is_running"])


def split(prefill: int) -> dict[str, int]:
    return {"prefill_percentage": prefill, "decode_percentage": 100 - prefill}


def test_the_split_moves_and_a_move_that_fails_says_why(
    tiny_model: Path, tmp_path: Path, second_flags: list[str]
) -> None:
    """Then workers cannot start: SGLang's scheduler finds no tokenizer. Their error is
    told in what, why and mend, without its traceback; the old ones serve on."""
    model = shutil.copytree(tiny_model, tmp_path / "model")
    flags = [
        *COMMON_FLAGS,
        *second_flags,
        "--skip-server-warmup",
        "--sm-partition-backend=mps",
    ]
    server = Server(name="early", model=model, flags=flags)
    try:
        server.start()
        ready = process_table.wait_until(lambda: serves(server), START_TIMEOUT_S)
        assert ready is not None, server.failure("it does not serve")
        moved = server.post(REALLOCATE, split(50), timeout_s=MOVE_TIMEOUT_S)
        assert moved.status_code == 200, server.failure(moved.text)

        tokenizer = model / "tokenizer.json"
        tokenizer.write_bytes(tokenizer.read_bytes()[:100])
        failed = server.post(REALLOCATE, split(60), timeout_s=MOVE_TIMEOUT_S)
        assert failed.status_code == 409, server.failure(failed.text)
        message = failed.json()["error"]["message"]
        assert "60/40 is not in force: sglang::semi_pd_" in message
        assert "cannot start: " in message
        assert "; check the model and the flags" in message
        assert failed.json()["current_sm_allocation"] == split(50)
        said = server.log()
        assert "The split stays 50/50 (asked for): 60/40 is not in force\n" in said
        assert "Traceback" not in said
        server.generate(input_ids=[5, 6, 7], max_new_tokens=4)
        assert server.stop() == 0
        assert not server.leftovers()
    finally:
        server.clean()
