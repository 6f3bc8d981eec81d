# SPDX-License-Identifier: Apache-2.0
"""Three instances behind SGLang's gateway, as ``examples/semi_pd/fleet`` starts them.

Fifteen processes: with ``SEMI_PD_SOAK=1`` only. ``test_gateway`` is the short form.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import client
import process_table
import psutil
import pytest
import requests
import zmq
from client import Body, RequestFailedError
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
WORDS = [
    "river",
    "stone",
    "light",
    "answer",
    "window",
    "paper",
    "garden",
    "number",
    "silver",
    "morning",
]
CLIENTS = 4
PAUSE_S = 0.1
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
        waited = process_table.wait_until(condition, timeout_s)
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


@dataclass
class Attempt:
    """One request of a client, and how it ended."""

    is_stream: bool
    started: float = field(default_factory=time.monotonic)
    instance: str | None = None
    error: str | None = None


@dataclass
class Load:
    """Clients that ask, pause and ask again until they are told to stop."""

    url: str
    pause_s: float = PAUSE_S
    attempts: list[Attempt] = field(default_factory=list)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Load]:
        async with client.session() as http:
            tasks = [asyncio.create_task(self._client(http, n)) for n in range(CLIENTS)]
            try:
                yield self
            finally:
                self._stop.set()
                await asyncio.gather(*tasks)

    async def _client(self, http: aiohttp.ClientSession, number: int) -> None:
        source = random.Random(number)
        while not self._stop.is_set():
            attempt = Attempt(is_stream=source.random() < 0.5)
            body = request(sentence(source, 20), tokens=source.randint(8, 48))
            try:
                async for meta in self._answers(http, attempt, body):
                    attempt.instance = meta["weight_version"]
            except (aiohttp.ClientError, RequestFailedError) as error:
                attempt.error = f"{type(error).__name__}: {error}"[:200]
            self.attempts.append(attempt)
            await asyncio.sleep(self.pause_s)

    async def _answers(
        self, http: aiohttp.ClientSession, attempt: Attempt, body: Body
    ) -> AsyncIterator[Any]:
        if not attempt.is_stream:
            yield (await client.generate(http, self.url, body))["meta_info"]
            return
        url, finished = f"{self.url}/generate", None
        async for piece in client.events(http, url, {**body, "stream": True}):
            finished = piece["meta_info"]["finish_reason"]
            yield piece["meta_info"]
        if finished is None:
            raise RequestFailedError("the stream broke off")

    def served_since(self, moment: float) -> list[Attempt]:
        """Requests that began after a moment and succeeded."""
        return [a for a in self.attempts if a.started > moment and a.error is None]


def request(text: str, *, tokens: int) -> Body:
    parameters = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
    return {"text": text, "sampling_params": parameters}


def sentence(source: random.Random, words: int) -> str:
    return " ".join(source.choices(WORDS, k=words)) + ". "


async def until(condition: Any, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not after {timeout_s:.0f} s"
        await asyncio.sleep(0.1)


def hit_rate(url: str, conversations: int = 6, turns: int = 5) -> float:
    """Cached over all prompt tokens of conversations that take turns together."""
    sources = [random.Random(f"talk-{n}") for n in range(conversations)]
    histories = [sentence(source, 12) for source in sources]
    cached = prompted = 0
    for _ in range(turns):
        bodies = [request(history, tokens=12) for history in histories]
        answers = client.generate_all(url, bodies, limit=conversations)
        for place, answer in enumerate(answers):
            meta = answer["meta_info"]
            cached += meta["cached_tokens"]
            prompted += meta["prompt_tokens"]
            histories[place] += answer["text"] + " " + sentence(sources[place], 6)
    return cached / prompted


def forget(fleet: RunningFleet) -> None:
    """Empty every instance's prefix cache."""
    for url in fleet.urls():
        done = process_table.wait_until(
            lambda url=url: requests.post(f"{url}/flush_cache", timeout=30).ok, 30
        )
        assert done is not None, f"{url} did not flush its cache"


def test_multi_turn_hits_its_instance(fleet: RunningFleet) -> None:
    """Cache-aware routing: at least 90 % of a single instance's token hit rate."""
    forget(fleet)
    alone = hit_rate(fleet.urls()[0])
    if alone == 0:
        pytest.skip("the instances have no prefix cache in this version")
    forget(fleet)
    behind = hit_rate(fleet.gateway.url)
    print(f"token hit rate: one instance {alone:.3f}, three of them {behind:.3f}")
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
        if not socket.poll(15_000):
            forget(fleet)
            if hit_rate(fleet.urls()[0]) == 0:
                pytest.skip("the instances have no prefix cache in this version")
            pytest.fail(f"no event for {answer['meta_info']['prompt_tokens']} tokens")
        assert len(socket.recv_multipart()) == 3
    finally:
        context.destroy(linger=0)


def test_one_is_killed(fleet: RunningFleet) -> None:
    """SIGKILL under load: only streams of the killed instance break; the rest serve."""
    fleet.wait_all_healthy()
    name = "instance-1"

    async def run() -> tuple[Load, float]:
        async with Load(fleet.gateway.url).running() as load:
            await until(lambda: everybody_served(load, 0.0), 120)
            os.kill(fleet.pids()[name], signal.SIGKILL)
            killed = time.monotonic()
            await until(lambda: len(load.served_since(killed)) >= 60, 120)
        return load, killed

    load, killed = asyncio.run(run())
    failed = [attempt for attempt in load.attempts if attempt.error]
    after = {attempt.instance for attempt in load.served_since(killed)}
    print(f"{len(load.attempts)} requests, {len(failed)} streams broke: {failed}")
    # The gateway tries a request again until its answer has begun, not later.
    for attempt in failed:
        assert attempt.is_stream and attempt.started < killed, attempt
        assert attempt.instance in (name, None), attempt
    assert len(failed) <= CLIENTS
    assert after == {"instance-0", "instance-2"}
    fleet.wait_all_healthy()
    assert f"{name} has ended; starting it again" in fleet.said()


def everybody_served(load: Load, moment: float) -> bool:
    """Whether each instance has answered a request that began after a moment."""
    return len({one.instance for one in load.served_since(moment)}) == INSTANCES


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
    before = fleet.pids()
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
                await until(lambda: everybody_served(load, ended), 120)
        return load, code

    load, code = asyncio.run(run())
    failed = [attempt for attempt in load.attempts if attempt.error]
    streams = sum(attempt.is_stream for attempt in load.attempts)
    print(f"{len(load.attempts)} requests, {streams} of them streams, failed: {failed}")
    assert code == 0, fleet.said()
    assert not failed
    after = fleet.pids()
    assert all(after[name] != before[name] for name in before)
    assert "ended with exit code" not in fleet.said()
