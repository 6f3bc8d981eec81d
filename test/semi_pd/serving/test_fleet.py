# SPDX-License-Identifier: Apache-2.0
"""Three instances behind SGLang's gateway, as ``examples/semi_pd/fleet`` starts them.

Fifteen processes: with ``SEMI_PD_SOAK=1`` only. ``test_gateway`` is the short form.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import client
import process_table
import psutil
import pytest
import requests
import zmq
from fleet_clients import CLIENTS, Load, hit_rate, request, until
from harness import REPOSITORY, free_port
from workload import IS_SOAK

sys.path.insert(0, str(REPOSITORY / "examples" / "semi_pd" / "fleet"))

import gateway as sglang_gateway
from gateway import Gateway, GatewayError

pytestmark = [
    pytest.mark.server,
    pytest.mark.timeout(5400),
    pytest.mark.skipif(not IS_SOAK, reason="15 processes; SEMI_PD_SOAK=1 runs it"),
]

SCRIPTS = REPOSITORY / "examples" / "semi_pd" / "fleet"
INSTANCES = 3
NAMES = {f"instance-{number}" for number in range(INSTANCES)}
START_TIMEOUT_S = 1500.0
RESTART_TIMEOUT_S = 3000.0
EVENTS = '{"publisher": "zmq", "endpoint": "tcp://*:2557{index}"}'
EVENTS_PORT = 25570
FLAGS = (
    "--enable-semi-pd",
    "--dtype=float32",
    "--random-seed=1",
    "--max-total-tokens=4096",
    "--chunked-prefill-size=512",
    # Told in every answer: which instance it came from.
    "--weight-version=instance-{index}",
    f"--kv-events-config={EVENTS}",
)
LONG_PAUSE_S = 1.0


@dataclass
class RunningFleet:
    """A fleet that ``fleet.py`` started."""

    place: Path
    process: subprocess.Popen[bytes]
    gateway: Gateway

    def state(self) -> dict[str, Any]:
        path = self.place / "fleet.json"
        return json.loads(path.read_text()) if path.exists() else {"state": "absent"}

    def pids(self) -> dict[str, int]:
        return {one["name"]: one["pid"] for one in self.state()["instances"]}

    def urls(self) -> list[str]:
        return [one["url"] for one in self.state()["instances"]]

    def said(self) -> str:
        return (self.place / "said").read_text(errors="replace")

    def wait(self, condition: Any, timeout_s: float = START_TIMEOUT_S) -> None:
        waited = process_table.wait_until(
            lambda: self.process.poll() is not None or condition(), timeout_s
        )
        assert waited is not None and self.process.poll() is None, self.said()[-6000:]

    def wait_all_healthy(self) -> None:
        self.wait(lambda: len(self.gateway.healthy()) == INSTANCES)


@pytest.fixture(scope="module")
def fleet(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningFleet]:
    """Started, and at the end stopped, as an operator does."""
    try:
        sglang_gateway.command()
    except GatewayError as error:
        pytest.skip(str(error))
    place, port = tmp_path_factory.mktemp("fleet"), free_port()
    command = [sys.executable, str(SCRIPTS / "fleet.py"), "--place", str(place)]
    command += ["--model-path", str(tiny_model), "--instances", str(INSTANCES)]
    command += ["--port", str(port), "--", *FLAGS]
    with (place / "said").open("wb") as said:
        process = subprocess.Popen(
            command,
            stdout=said,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
    running = RunningFleet(place, process, Gateway(f"http://127.0.0.1:{port}"))
    sessions: list[int] = []
    try:
        running.wait(lambda: running.state()["state"] == "serving")
        yield running
        sessions = list(running.pids().values())
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
        print(running.said())
        left = [p for pid in sessions for p in process_table.in_session(pid)]
        assert not left, process_table.describe(left)
    finally:
        if process.poll() is None:
            sessions = list(running.pids().values())
            process.kill()
        for pid in sessions:
            process_table.signal_all(process_table.in_session(pid), signal.SIGKILL)


def forget(fleet: RunningFleet) -> None:
    """Empty every instance's prefix cache."""
    for url in fleet.urls():
        done = process_table.wait_until(
            lambda url=url: requests.post(f"{url}/flush_cache", timeout=30).ok, 120
        )
        assert done is not None, f"{url} did not flush its cache"


def test_multi_turn_hits_its_instance(fleet: RunningFleet) -> None:
    """Cache-aware routing: at least 90 % of a single instance's token hit rate."""
    forget(fleet)
    alone = hit_rate(fleet.urls()[0])
    forget(fleet)
    behind = hit_rate(fleet.gateway.url)
    print(f"token hit rate: one instance {alone:.3f}, three of them {behind:.3f}")
    assert alone > 0
    assert behind >= 0.9 * alone


def test_kv_events(fleet: RunningFleet) -> None:
    """One publisher for each instance, where the descriptor says."""
    context = zmq.Context()
    socket = context.socket(zmq.SUB)
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    told = requests.get(f"{fleet.urls()[0]}/server_info", timeout=30).json()[
        "kv_events"
    ]
    assert told["dp_size"] == 1 and told["endpoint_port_base"] == EVENTS_PORT
    socket.connect(f"tcp://127.0.0.1:{told['endpoint_port_base']}")
    try:
        time.sleep(1)  # a subscription has no answer
        [answer] = client.generate_all(
            fleet.urls()[0], [request("a prompt that nobody has sent", tokens=8)]
        )
        assert socket.poll(15_000), f"no event for {answer['meta_info']}"
        assert len(socket.recv_multipart()) == 3
    finally:
        context.destroy(linger=0)


def test_one_is_killed(fleet: RunningFleet) -> None:
    """SIGKILL under load: only streams of the killed instance break; the rest serve."""
    fleet.wait_all_healthy()
    name = "instance-1"

    async def run() -> tuple[Load, float]:
        async with Load(fleet.gateway.url).running() as load:
            await until(lambda: load.served_by(0.0) == NAMES, 120)
            os.kill(fleet.pids()[name], signal.SIGKILL)
            killed = time.monotonic()
            await until(lambda: len(load.served_since(killed)) >= 60, 120)
        return load, killed

    load, killed = asyncio.run(run())
    failed = [attempt for attempt in load.attempts if attempt.error]
    print(f"{len(load.attempts)} requests, {len(failed)} streams broke: {failed}")
    # The gateway tries a request again until its answer has begun, not later.
    for attempt in failed:
        assert attempt.is_stream and attempt.started < killed, attempt
        assert attempt.instance in (name, None), attempt
    assert len(failed) <= CLIENTS
    assert load.served_by(killed) == NAMES - {name}
    fleet.wait_all_healthy()
    assert f"{name} has ended; starting it again" in fleet.said()


def test_a_worker_that_hangs(fleet: RunningFleet) -> None:
    """Decode stands still: its instance says so, and the gateway goes round it.

    Its prefill worker goes on to answer SGLang's own health check while it has work.
    """
    fleet.wait_all_healthy()
    stuck = fleet.urls()[0]
    [decode] = process_table.find_role(
        process_table.in_session(fleet.pids()["instance-0"]), "decode"
    )
    decode.suspend()
    try:
        said = process_table.wait_until(lambda: reason_of(stuck) is not None, 60)
        assert said is not None
        assert "decode worker has not reported" in str(reason_of(stuck))
        fleet.wait(lambda: stuck not in fleet.gateway.healthy(), 60)
        bodies = [request(f"Is {n} an answer?", tokens=4) for n in range(12)]
        answers = client.generate_all(fleet.gateway.url, bodies)
        names = {answer["meta_info"]["weight_version"] for answer in answers}
        assert names == {"instance-1", "instance-2"}
    finally:
        with suppress(psutil.NoSuchProcess):  # replaced meanwhile
            decode.resume()
    fleet.wait_all_healthy()


def reason_of(url: str) -> str | None:
    """Why an instance is not healthy, as it says; None while it says nothing."""
    reply = requests.get(f"{url}/health", timeout=60)
    return reply.json()["error"]["message"] if reply.content else None


def test_rolling_restart_fails_nothing(fleet: RunningFleet) -> None:
    """All three are restarted under load; every request of every client succeeds."""
    fleet.wait_all_healthy()
    before, said_before = fleet.pids(), len(fleet.said())
    script = [sys.executable, str(SCRIPTS / "rolling_restart.py")]

    async def run() -> tuple[Load, int]:
        # A restart takes minutes, for which the instance that starts needs the cores.
        async with Load(fleet.gateway.url, LONG_PAUSE_S).running() as load:
            restart = await asyncio.create_subprocess_exec(
                *script, "--place", str(fleet.place)
            )
            code = await asyncio.wait_for(restart.wait(), RESTART_TIMEOUT_S)
            ended = time.monotonic()
            if code == 0:
                await until(lambda: load.served_by(ended) == NAMES, 120)
        return load, code

    load, code = asyncio.run(run())
    failed = [attempt for attempt in load.attempts if attempt.error]
    streams = sum(attempt.is_stream for attempt in load.attempts)
    print(f"{len(load.attempts)} requests, {streams} of them streams, failed: {failed}")
    assert code == 0, fleet.said()
    assert not failed
    after = fleet.pids()
    assert all(after[name] != before[name] for name in before)
    assert "ended with exit code" not in fleet.said()[said_before:]
