#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The whole of it once: start, serve, look inside, stop with Ctrl-C.

Runs under pytest, and by itself:

    python test/semi_pd/test_integration.py
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "serving"))

import client  # noqa: E402
import process_table  # noqa: E402
import pytest  # noqa: E402
import requests  # noqa: E402
from harness import COMMON_FLAGS, Server  # noqa: E402
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402
from tiny_models import make_tiny_model  # noqa: E402
from workload import endless, prompt  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[2]
COMMAND = REPOSITORY / "python" / "semi_pd_cli.py"
GUIDE = (REPOSITORY / "docs" / "semi_pd_guide.md").read_text(encoding="utf-8")

ADMIN_KEY = "admin-key-canary"
ROWS = 6
"""Fewer than any worker leases at a time where there are enough."""
FLAGS = (
    *COMMON_FLAGS,
    "--enable-semi-pd-coordinator",
    f"--max-running-requests={ROWS}",
    "--admin-api-key",
    ADMIN_KEY,
)
SPLIT = {"prefill_percentage": 60, "decode_percentage": 40}
STREAMS = 4
TOKENS = 32
GRACE_S = 60.0
HISTORY_S = 3.0
"""Longer than between two samples of the history."""
SHORT, ENDLESS = 300, 3500
"""Tokens of the streams that Ctrl-C meets: one ends by itself, the other does not."""
INTERRUPTED = 130
"""Exit code of a server that did not finish what ran."""


def check_streams(server: Server) -> None:
    """Concurrent streams give every token, and the same ones twice."""
    bodies = [endless(prompt(50 + 300 * n, seed=n), TOKENS) for n in range(STREAMS)]
    start = time.monotonic()
    first = [one["output_ids"] for one in client.stream_all(server.url, bodies)]
    second = [one["output_ids"] for one in client.stream_all(server.url, bodies)]
    assert [len(ids) for ids in first] == [TOKENS] * STREAMS
    assert first == second
    print(f"{2 * STREAMS} streams of {TOKENS} tokens: {time.monotonic() - start:.1f} s")


def check_few_rows(server: Server) -> None:
    """As many requests run as were allowed, the others wait, and all are served."""
    bodies = [endless(prompt(40, seed=n), 3 * TOKENS) for n in range(3 * ROWS)]
    answers = client.stream_all(server.url, bodies)
    assert [len(one["output_ids"]) for one in answers] == [3 * TOKENS] * len(bodies)
    running = re.findall(r"Decode batch.*#running-req: (\d+)", server.log())
    assert max(map(int, running)) == ROWS, running


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


def check_split(server: Server) -> None:
    """Who has the admin key moves the split, and nobody else does."""

    def move(key: str, body: dict[str, int]) -> requests.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        url = f"{server.url}/semi_pd/reallocate"
        return requests.post(url, json=body, headers=headers, timeout=60)

    for key in ("", "guess"):
        assert move(key, SPLIT).status_code == 401
    wrong = move(ADMIN_KEY, {**SPLIT, "decode_percentage": 0})
    assert wrong.status_code == 400 and "decode_percentage=0" in wrong.text
    moved = move(ADMIN_KEY, SPLIT)
    assert moved.status_code == 200, moved.text
    assert moved.json()["current_sm_allocation"] == SPLIT
    print(f"the split moved in {moved.json()['took_s']} s")


def check_what_is_shown(server: Server) -> None:
    """Prometheus, ``semi-pd top``, history and dashboard show what was done."""
    text = server.get("/metrics").text
    found = {one.name: one for one in text_string_to_metric_families(text)}
    shares = {
        sample.labels["role"]: sample.value
        for sample in found["sglang:semi_pd_sm_share_ratio"].samples
    }
    assert shares == {"prefill": 0.6, "decode": 0.4}
    names = {row.split("`")[1] for row in GUIDE.splitlines() if "| `sglang:" in row}
    exported = set(re.findall(r"^# TYPE (\S+)", text, re.M))
    assert {"sglang:semi_pd_kv_blocks", "sglang:num_running_reqs"} <= exported
    assert len(names) > 10 and names <= exported
    top = subprocess.run(
        [sys.executable, str(COMMAND), "top", "--once", "--url", server.url],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "prefill 60 %" in top.stdout, top.stderr
    print(top.stdout)
    metrics = server.get("/semi_pd/status").json()["metrics"]
    assert metrics["prefill_is_reporting"] and metrics["decode_is_reporting"]
    history = server.get("/semi_pd/history").json()
    assert history["rows"] and "split" in [one["kind"] for one in history["events"]]
    assert "<title>Semi-PD</title>" in server.get("/semi_pd/").text
    assert ADMIN_KEY not in server.get("/semi_pd/status").text


def check_interrupt(server: Server) -> None:
    """Ctrl-C once drains; twice aborts what still runs; nothing stays."""
    short, endless_one = asyncio.run(interrupt_twice(server))
    assert short.finish_type == "length"
    assert len(short.last["output_ids"]) == SHORT
    assert endless_one.finish_type == "abort"
    start = time.monotonic()
    code = server.wait_exit(GRACE_S)
    if code != INTERRUPTED:
        raise server.failure(f"exit code {code} after Ctrl-C")
    assert process_table.wait_until(lambda: not server.leftovers(), 5) is not None, (
        server.leftovers()
    )
    log = server.log()
    assert "Traceback" not in log, server.failure("a traceback")
    assert (log.count("Draining: 2 requests"), log.count("Aborting 1 req")) == (1, 1)
    print(f"gone {time.monotonic() - start:.1f} s after the second Ctrl-C")


async def interrupt_twice(server: Server) -> tuple[client.Stream, client.Stream]:
    """A short and an endless stream, and what the server answers in between."""
    lengths = (SHORT, ENDLESS)
    bodies = [endless(prompt(50, seed=n), length) for n, length in enumerate(lengths)]
    async with client.session() as http:
        short, other = (
            asyncio.create_task(client.stream(http, server.url, body))
            for body in bodies
        )
        await asyncio.sleep(0.5)
        server.interrupt()
        await asyncio.sleep(0.5)
        async with http.post(f"{server.url}/generate", json=bodies[0]) as reply:
            assert reply.status == 503
            assert "shutting down" in await reply.text()
        for path, status in (("/health", 503), ("/semi_pd/status", 200)):
            async with http.get(server.url + path) as reply:
                assert reply.status == status, path
        finished = await asyncio.wait_for(short, GRACE_S)
        assert not other.done()
        server.interrupt()
        return finished, await asyncio.wait_for(other, GRACE_S)


def run(model: Path) -> None:
    """Start a server on ``model`` and make every check on it."""
    server = Server(name="semi-pd", model=model, flags=FLAGS)
    try:
        server.start().wait_ready()
        print(f"ready after {server.ready_s:.1f} s")
        check_streams(server)
        check_few_rows(server)
        check_text(server)
        check_processes(server)
        check_status(server)
        check_split(server)
        time.sleep(HISTORY_S)
        check_what_is_shown(server)
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
