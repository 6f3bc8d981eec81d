# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of the benchmark: loads, SLOs, goodput, and the report."""

from __future__ import annotations

import asyncio
import importlib
import json
import math
import socket
import threading
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

SLOS = Namespace(slo_ttft=200.0, slo_tpot=50.0, slo_gap=25.0)


@pytest.fixture(autouse=True)
def on_path(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark's modules import each other as a program's do."""
    monkeypatch.syspath_prepend(str(repository / "benchmark" / "semi_pd"))


def module(name: str) -> Any:
    """Imported late: only then is the folder on the path."""
    return importlib.import_module(name)


def record(ttft: float, gap: float, tpot: float = 10.0, *, success: bool = True) -> Any:
    return module("records").Record(0.5, 100, 50, ttft, tpot, gap, success)


def test_one_seed_one_load_and_no_prompt_twice() -> None:
    load = module("loads").LOADS["mixed"]
    first, again = (load.requests(12, 20, seed=3) for _ in range(2))
    assert first == again
    assert first != load.requests(12, 20, seed=4)
    prompts = load.prompts(first, rate=12, seed=3, vocabulary=1000)
    other = load.prompts(first, rate=18, seed=3, vocabulary=1000)
    assert [len(prompt) for prompt in prompts] == [r.input_len for r in first]
    assert prompts[0][:20] != other[0][:20]
    assert all(10 <= token < 1000 for token in prompts[0])


@pytest.mark.parametrize("name", ["chat", "mixed", "long", "long-context", "shifting"])
def test_loads_have_the_rate_and_the_lengths_they_say(name: str) -> None:
    load = module("loads").LOADS[name]
    requests = load.requests(10, 400, seed=0)
    assert abs(len(requests) - 4000) < 5 * math.sqrt(4000)
    arrivals = [request.arrival_s for request in requests]
    assert arrivals == sorted(arrivals)
    means = {"chat": 250, "mixed": 1024, "long": 3000, "shifting": 1625}
    mean = sum(r.input_len for r in requests) / len(requests)
    assert abs(mean - means.get(name, 2450)) < 0.1 * mean


def test_a_miniature_keeps_arrivals() -> None:
    loads = module("loads")
    small = loads.miniature(loads.LOADS["long"], 100)
    full = loads.LOADS["long"].requests(5, 30, seed=1)
    tiny = small.requests(5, 30, seed=1)
    assert [r.arrival_s for r in tiny] == [r.arrival_s for r in full]
    assert max(r.input_len for r in tiny) <= 45


def test_a_stall_fails_the_gap_and_not_the_tempo() -> None:
    tpot, gap = module("report").slos(SLOS)
    stalled = record(150, 300)
    assert tpot.holds(stalled)
    assert not gap.holds(stalled)
    assert not tpot.holds(record(201, 5))
    assert not tpot.holds(record(10, 5, success=False))


def test_goodput_ends_at_the_first_bad_rate() -> None:
    goodput = module("records").goodput
    assert goodput({10: 0.99, 20: 0.95, 30: 0.5, 40: 0.92}) == 20
    assert goodput({10: 0.2, 20: 0.99}) == 0
    assert goodput({}) == 0


def test_records_come_back_as_written(tmp_path: Path) -> None:
    records = module("records")
    path = tmp_path / "run.jsonl"
    records.write(path, [record(1.5, 2.5), record(0, 0, success=False)])
    assert records.read(path) == [record(1.5, 2.5), record(0, 0, success=False)]
    first = json.loads(path.read_text().splitlines()[0])
    assert {"arrival_s", "input_len", "output_len", "ttft_ms"} <= first.keys()


def test_report_keeps_the_best_tuned_system(tmp_path: Path) -> None:
    records = module("records")
    gaps = {"default": 480, "tuned-mixed-512": 37, "tuned-mixed-1024": 20}
    for system, gap in gaps.items():
        (tmp_path / system).mkdir()
        records.write(tmp_path / system / "mixed@12.jsonl", [record(100, gap)] * 10)
    table = module("report").make(Namespace(out=tmp_path, **vars(SLOS)))
    runs = json.loads((tmp_path / "report.json").read_text())["runs"]
    assert [row["system"] for row in runs] == ["default", "tuned-mixed-1024"]
    assert "| mixed 12/s | default | 10 | 0 |" in table
    assert "goodput (gap)" in table


def test_a_server_of_before_is_not_measured_in_the_place_of_another(
    tmp_path: Path,
) -> None:
    systems = module("systems")
    with socket.create_server(("127.0.0.1", 0)) as before:
        port = before.getsockname()[1]
        server = systems.RunningServer(systems.System("it"), (), port, tmp_path)
        with pytest.raises(systems.NotReadyError, match=f"port {port} is taken"):
            server.start(1.0)


def test_agreement_counts_answers_and_tokens() -> None:
    agreement = module("steady").agreement
    found = agreement([[1, 2], [3, 4]], [[1, 2], [3, 5]])
    assert found == {"answers": 1, "of": 2, "tokens": 0.75}


def test_the_shifting_load_is_what_its_rules_say() -> None:
    load = module("shifting_load")
    stretch = load.Stretch(load.DECODE_HEAVY, 20.0, 30.0)
    turned = load.Stretch(load.PREFILL_HEAVY, 10.0, 60.0)
    requests = load.arrivals([stretch, turned, stretch], seed=3)
    assert requests == load.arrivals([stretch, turned, stretch], seed=3)
    assert requests != load.arrivals([stretch, turned, stretch], seed=4)
    prefill_heavy = [one for one in requests if 30 <= one.arrival_s < 90]
    assert abs(len(prefill_heavy) - 600) < 5 * math.sqrt(600)
    assert abs(len(requests) - 1800) < 5 * math.sqrt(1800)
    assert {one.input_len >= 750 for one in prefill_heavy} == {True}
    assert max(one.output_len for one in prefill_heavy) <= 24
    assert requests[-1].arrival_s < 120


def test_a_miss_is_known_as_soon_as_it_is_certain() -> None:
    slo = module("records").Slo("both", 200.0, 20.0)
    flight = module("shifting_client").Flight(module("loads").Request(0.0, 10, 11), 5.0)
    assert not flight.has_missed(slo, 5.1)
    assert flight.has_missed(slo, 5.3)
    flight.event(5.15)
    assert not flight.has_missed(slo, 9.0)
    flight.event(5.45)
    flight.is_done = True
    assert flight.has_missed(slo, 5.5)  # 30 ms a token
    assert flight.record().tpot_ms == pytest.approx(30.0)
    late = module("shifting_client").Flight(module("loads").Request(0.0, 10, 11), 5.0)
    late.event(5.21)
    assert late.has_missed(slo, 5.21)


def shifting_runs() -> dict[str, Any]:
    """One run that was served to its end and one that was given up."""
    records = [vars_of(record(100, 5, tpot)) for tpot in (10.0, 10.0, 30.0, 10.0)]
    sample = {
        "at_s": 1.0,
        "asked": {"prefill_percentage": 80, "decode_percentage": 100},
        "had": {"prefill_percentage": 79.0, "decode_percentage": 100.0},
    }
    controller = {"name": "controller", "attainment": 0.75, "at_most": None}
    given_up = {"name": "80/100", "attainment": None, "at_most": 0.5}
    return {
        "edge_s": 0.1,
        "phase_s": 60.0,
        "slo": {"ttft_ms": 1200.0, "tpot_ms": 17.0},
        "rates": {"prefill_heavy": 16.0, "decode_heavy": 18.0},
        "requests": 4,
        "probe": {"records": [records, records]},
        "runs": [
            {**controller, "records": records, "samples": [sample]},
            {**given_up, "records": records[:2], "samples": []},
        ],
    }


def vars_of(one: Any) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__dataclass_fields__}


class SlowServer:
    """Answers with three tokens, one at once and one each tenth of a second."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self._start(), self.loop).result()

    async def _start(self) -> int:
        app = web.Application()
        app.router.add_post("/generate", self._generate)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port: int = self._runner.addresses[0][1]
        return port

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        for number in (1, 2, 3):
            meta = {"meta_info": {"completion_tokens": number}}
            await answer.write(f"data: {json.dumps(meta)}\n\n".encode())
            await asyncio.sleep(0.1)
        return answer

    def stop(self) -> None:
        stopped = asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self.loop)
        stopped.result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()


@pytest.fixture
def slow_server() -> Iterator[Any]:
    server = SlowServer()
    yield module("shifting_client").Server(f"http://127.0.0.1:{server.port}")
    server.stop()


def test_a_run_counts_unless_it_was_given_up(slow_server: Any) -> None:
    client, request = module("shifting_client"), module("loads").Request
    asked = [request(0.0, 10, 3), request(0.05, 10, 3), request(0.6, 10, 9)]

    def prompts(length: int) -> list[int]:
        return [7] * length

    whole = client.send_all(slow_server, asked, prompts, drain_s=5.0)
    assert not whole.was_given_up
    assert [one.success for one in whole.records] == [True, True, False]
    assert 80 < whole.records[0].tpot_ms < 400
    hurried = client.send_all(slow_server, asked[:2], prompts, drain_s=0.05)
    assert not hurried.was_given_up
    assert not any(one.success for one in hurried.records)
    ended = client.send_all(
        slow_server, asked, prompts, drain_s=5.0, is_over=lambda flights, now: now > 0.3
    )
    assert ended.was_given_up and len(ended.records) == 2
    assert 0.6 <= ended.ended_s < 3, "looked at before each request: the third"


def test_streams_are_kept_busy_and_cut_off(slow_server: Any) -> None:
    client, request = module("shifting_client"), module("loads").Request
    run = client.keep_busy(
        slow_server,
        lambda: request(0.0, 10, 3),
        lambda length: [7] * length,
        starts=[0.0, 0.45],
        seconds=1.1,
    )
    assert 4 <= len(run.records) <= 7
    ended = [one for one in run.records if one.success]
    assert len(run.records) - 2 <= len(ended) < len(run.records)
    assert sum(one.arrival_s < 0.4 for one in run.records) <= 2


def test_the_shifting_report_says_what_was_given_up(tmp_path: Path) -> None:
    report = module("shifting_report")
    (tmp_path / report.FILE).write_text(json.dumps(shifting_runs()))
    table = report.make(tmp_path)
    assert "| controller | 75.0% | 75.0% |" in table
    assert "| 80/100 | at most 50.0%, given up after 2 of 4 requests |" in table
    cut_off = "at most 50.0%, not completed, out of time after 2 of 4 requests"
    runs = shifting_runs()
    runs["runs"][1]["stopped"] = "not completed, out of time"
    (tmp_path / report.FILE).write_text(json.dumps(runs))
    assert f"| 80/100 | {cut_off} |" in report.make(tmp_path)
    probe = module("records").read(tmp_path / "decode_probe.jsonl")
    assert len(probe) == 4
