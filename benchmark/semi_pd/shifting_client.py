# SPDX-License-Identifier: Apache-2.0
"""Sends requests, and knows at each moment how many have missed their SLO."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from loads import Request
from records import Record, Slo

READ_BUFFER = 10 << 20
SAMPLE_S = 0.5


@dataclass
class Flight:
    """One request under way; times in seconds since the run began."""

    request: Request
    sent_s: float
    first_s: float | None = None
    last_s: float = 0.0
    worst_gap_s: float = 0.0
    is_done: bool = False

    def event(self, now: float) -> None:
        """A piece of the stream came."""
        if self.first_s is None:
            self.first_s = now
        else:
            self.worst_gap_s = max(self.worst_gap_s, now - self.last_s)
        self.last_s = now

    def record(self) -> Record:
        """What the client saw; no success if the stream did not end."""
        first_s = self.last_s if self.first_s is None else self.first_s
        steps = max(1, self.request.output_len - 1)
        return Record(
            arrival_s=round(self.sent_s, 4),
            input_len=self.request.input_len,
            output_len=self.request.output_len,
            ttft_ms=round(1e3 * max(0.0, first_s - self.sent_s), 2),
            tpot_ms=round(1e3 * (self.last_s - first_s) / steps, 3),
            worst_gap_ms=round(1e3 * self.worst_gap_s, 2),
            success=self.is_done,
        )

    def has_missed(self, slo: Slo, now: float) -> bool:
        """Whether it can no longer be inside its SLO."""
        if self.is_done:
            return not slo.holds(self.record())
        if self.first_s is None:
            return 1e3 * (now - self.sent_s) > slo.ttft_ms
        return 1e3 * (self.first_s - self.sent_s) > slo.ttft_ms


@dataclass
class Run:
    """What came of a run.

    Attributes:
        samples: the server's state, twice a second.
        was_given_up: whether it was ended early; what has not ended by the end of the
            drain has failed, and the run counts.
        ended_s: when its last requests had ended, or were ended.
    """

    flights: list[Flight] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    was_given_up: bool = False
    ended_s: float = 0.0

    @property
    def records(self) -> list[Record]:
        """In order of arrival."""
        return [flight.record() for flight in self.flights]


class Server:
    """What the benchmark asks of a server besides answers."""

    def __init__(self, url: str) -> None:
        self.url = url

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The answer's JSON; raises what urllib does."""
        data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        asked = urllib.request.Request(self.url + path, data, headers)
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    def move(self, split: str) -> None:
        """Bring ``"80/100"`` into force."""
        prefill, decode = map(int, split.split("/"))
        body = {"prefill_percentage": prefill, "decode_percentage": decode}
        self.post("/semi_pd/reallocate", body)

    def control(self, **wishes: Any) -> None:
        """Change the controller's mode or targets."""
        self.post("/semi_pd/slo", wishes)

    def status(self) -> dict[str, Any]:
        """The state of the instance."""
        with urllib.request.urlopen(f"{self.url}/semi_pd/status", timeout=60) as answer:
            document: dict[str, Any] = json.load(answer)
            return document

    def settle(self, timeout_s: float = 15.0) -> None:
        """End what still runs, and wait until nothing does."""
        deadline = time.monotonic() + timeout_s
        asked = urllib.request.Request(
            f"{self.url}/abort_request",
            b'{"abort_all": true}',
            {"Content-Type": "application/json"},
        )
        while time.monotonic() < deadline:
            metrics = self.status()["metrics"]
            if not metrics["waiting_requests"] + metrics["decoding_requests"]:
                return
            urllib.request.urlopen(asked, timeout=60).close()
            time.sleep(0.3)


def send_all(
    server: Server,
    requests: Sequence[Request],
    prompts: Callable[[int], list[int]],
    *,
    drain_s: float,
    is_over: Callable[[list[Flight], float], bool] = lambda flights, now: False,
) -> Run:
    """Send each request at its time; ``is_over`` may end the run early."""

    async def main() -> Run:
        run, tasks = Run(), []
        async with _session() as http, _sampled(http, server, run) as began:
            for request in requests:
                wait_s = request.arrival_s - (time.perf_counter() - began)
                await asyncio.sleep(max(0.0, wait_s))
                run.was_given_up = is_over(run.flights, time.perf_counter() - began)
                if run.was_given_up:
                    break
                flight = Flight(request, time.perf_counter() - began)
                run.flights.append(flight)
                prompt = prompts(request.input_len)
                tasks.append(
                    asyncio.create_task(_fly(http, server, flight, prompt, began))
                )
            ends_s = time.perf_counter() - began + drain_s
            while not run.was_given_up and not all(task.done() for task in tasks):
                now = time.perf_counter() - began
                if now > ends_s:
                    break
                run.was_given_up = is_over(run.flights, now)
                await asyncio.sleep(0.1)
            run.ended_s = time.perf_counter() - began
            await _cancel(tasks)
        return run

    return asyncio.run(main())


def keep_busy(
    server: Server,
    draw: Callable[[], Request],
    prompts: Callable[[int], list[int]],
    *,
    starts: Sequence[float],
    seconds: float,
) -> Run:
    """One request after the other in each stream, until the time is over.

    Args:
        starts: when each stream begins. Requests under way at the end are cut off.
    """

    async def main() -> Run:
        run = Run()
        async with _session() as http, _sampled(http, server, run) as began:

            async def one_after_the_other(begins_s: float) -> None:
                await asyncio.sleep(begins_s)
                while time.perf_counter() - began < seconds:
                    request = draw()
                    flight = Flight(request, time.perf_counter() - began)
                    run.flights.append(flight)
                    await _fly(http, server, flight, prompts(request.input_len), began)

            tasks = [asyncio.create_task(one_after_the_other(at)) for at in starts]
            await asyncio.wait(tasks, timeout=seconds)
            await _cancel(tasks)
        return run

    return asyncio.run(main())


@asynccontextmanager
async def _session() -> AsyncIterator[aiohttp.ClientSession]:
    # A connection for each request: the server closes idle ones as it likes.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, read_bufsize=READ_BUFFER
    ) as http:
        yield http


async def _fly(
    http: aiohttp.ClientSession,
    server: Server,
    flight: Flight,
    prompt: list[int],
    began: float,
) -> None:
    sampling = {
        "temperature": 0,
        "max_new_tokens": flight.request.output_len,
        "ignore_eos": True,
    }
    body = {"input_ids": prompt, "stream": True, "sampling_params": sampling}
    last = b""
    try:
        async with http.post(f"{server.url}/generate", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    flight.event(time.perf_counter() - began)
                    last = line
    except (aiohttp.ClientError, OSError):
        return
    meta = json.loads(last[len(b"data: ") :] or b"{}").get("meta_info", {})
    flight.is_done = meta.get("completion_tokens") == flight.request.output_len


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def _sampled(
    http: aiohttp.ClientSession, server: Server, run: Run
) -> AsyncIterator[float]:
    """Look at the server's state meanwhile; gives when the run began."""
    began = time.perf_counter()

    async def look() -> None:
        while True:
            try:
                async with http.get(f"{server.url}/semi_pd/status") as answer:
                    document = await answer.json()
                run.samples.append(sample(document, time.perf_counter() - began))
            except (aiohttp.ClientError, OSError):
                pass
            await asyncio.sleep(SAMPLE_S)

    looking = asyncio.create_task(look())
    try:
        yield began
    finally:
        await _cancel([looking])


def sample(document: dict[str, Any], at_s: float) -> dict[str, Any]:
    """What of a status is drawn over time."""
    rotation, metrics = document["process_rotation_status"], document["metrics"]
    last = document["slo_controller_status"]["last_decision"]
    return {
        "at_s": round(at_s, 2),
        "asked": rotation["current_sm_allocation"],
        "had": rotation["realised_sm_allocation"],
        "reason": last and last["reason"],
        "ttft_p90_ms": metrics["ttft_p90_ms"],
        "tpot_p90_ms": metrics["tpot_p90_ms"],
        "waiting": metrics["waiting_requests"],
        "decoding": metrics["decoding_requests"],
    }
