# SPDX-License-Identifier: Apache-2.0
"""New workers take over while streams run; workers are killed: the same tokens.

``mps`` on a CPU host: the split is fixed when a process starts and moves by rotation.
"""

from __future__ import annotations

import asyncio
import re
import signal
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import client
import disturb
import process_table
import psutil
import pytest
import requests
import switching
from compare import mismatches
from harness import Server
from held import Held
from reuse import reused, wrong
from workload import IS_SOAK, endless, prompt

pytestmark = pytest.mark.server

ROTATIONS = 200 if IS_SOAK else 4
KILLS = 100 if IS_SOAK else 3
FAILURES = 10 if IS_SOAK else 1
STREAMS = 16 if IS_SOAK else 8
SETTLE_S = 20.0
FULL_S = 2.0
EARLY_DEATHS = 8
"""In a row: had each dead pair kept its slots, the next would find none."""
DETECTION_S = 0.05
CROWD, CROWD_PROMPT, CROWD_TOKENS = 24, 450, 350
IDS = 8
LONG_PROMPTS, LONG_PROMPT = 6, 2200
"""More than four chunks each."""


@pytest.fixture(scope="module")
def server(rotating: Server) -> Server:
    """As the trials call it."""
    return rotating


def status_of(server: Server) -> dict[str, Any]:
    return dict(server.get("/semi_pd/status").json())


def require_nothing_leaked(server: Server) -> None:
    """After a flush no page and no row is anybody's."""
    server.flush_cache()
    usage = server.memory_usage()
    assert usage["allocated_blocks"] == 0
    assert usage["allocated_rows"] == 0
    assert usage["audits_failed"] == 0


@pytest.fixture(autouse=True)
def holds_no_more(server: Server) -> Iterator[None]:
    """File descriptors and shared memory are as many after a trial as before it."""
    before = Held.by(server)
    yield
    settled = process_table.wait_until(
        lambda: not Held.by(server).beyond(before), SETTLE_S
    )
    assert settled is not None, Held.by(server).beyond(before)


def test_rotations_change_no_token(server: Server) -> None:
    before = status_of(server)
    outcome = disturb.run(
        server.url,
        disturb.rotating((60, 40), (40, 60)),
        times=ROTATIONS,
        streams=STREAMS,
    )
    print(outcome)
    assert not outcome.changed
    after = status_of(server)
    deaths = [now["recovery_status"]["worker_deaths"] for now in (before, after)]
    assert deaths[0] == deaths[1]
    pairs = [now["process_rotation_status"]["generation"] for now in (before, after)]
    assert pairs[1] == pairs[0] + ROTATIONS
    require_nothing_leaked(server)


@pytest.mark.parametrize("roles", [("prefill",), ("decode",), ("prefill", "decode")])
def test_deaths_change_no_token(server: Server, roles: tuple[str, ...]) -> None:
    outcome = disturb.run(
        server.url, disturb.killing(*roles), times=KILLS, streams=STREAMS
    )
    print(outcome)
    assert not outcome.changed
    assert len(outcome.detected_s) == KILLS
    assert statistics.median(outcome.detected_s) <= DETECTION_S
    require_nothing_leaked(server)


def test_pairs_that_die_before_they_begin(server: Server, faults: Path) -> None:
    """What they were to take over is there for the next; no request is given up."""
    died = deaths(server)
    early = disturb.dying_early(faults, EARLY_DEATHS)
    outcome = disturb.run(server.url, early, times=1, streams=2 * STREAMS)
    print(outcome)
    assert not outcome.changed
    assert deaths(server) == died + EARLY_DEATHS
    require_nothing_leaked(server)


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_request_that_brings_workers_down_fails_alone(
    server: Server, faults: Path, role: str
) -> None:
    """It is found among those that run beside it, and they go on."""
    poison = disturb.poisoning(faults, role)
    outcome = disturb.run(server.url, poison, times=1, streams=STREAMS)
    print(outcome)
    assert not outcome.changed
    (refusal,) = outcome.refused
    assert "pair of workers died" in refusal
    require_nothing_leaked(server)


def test_a_worker_that_hangs_is_replaced(server: Server) -> None:
    outcome = disturb.run(
        server.url,
        disturb.killing("decode", by=signal.SIGSTOP),
        times=1,
        streams=STREAMS,
    )
    assert not outcome.changed
    require_nothing_leaked(server)


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_worker_that_stands_still_says_where(
    server: Server, faults: Path, role: str
) -> None:
    """It goes on by itself, before it is replaced."""
    died, printed = deaths(server), len(server.log())
    (faults / "still").write_text(role)
    asked = [endless(prompt(20, 90), 8)]
    answers = client.generate_all(server.url, asked)
    assert not mismatches(asked, client.generate_all(server.url, asked), answers)
    said = server.log()[printed:]
    assert f"semi_pd_{role} (pid " in said and "has stood still for 5." in said
    assert re.search(r"fault_plugin\.py\W+line \d+ in run_batch", said)
    assert deaths(server) == died
    require_nothing_leaked(server)


@pytest.mark.parametrize("fault", ["crash", "gate", "hang", "forward"])
def test_standbys_that_fail_change_nothing(
    server: Server, faults: Path, fault: str
) -> None:
    before = status_of(server)
    outcome = disturb.run(
        server.url,
        disturb.failing(fault, faults),
        times=FAILURES,
        streams=STREAMS,
    )
    print(outcome)
    assert not outcome.changed
    after = status_of(server)
    rotation = "process_rotation_status"
    failed = [now[rotation]["failed_moves"] for now in (before, after)]
    assert failed[1] == failed[0] + FAILURES
    good = disturb.run(server.url, disturb.rotating((60, 40)), times=1, streams=STREAMS)
    assert not good.changed
    require_nothing_leaked(server)


def test_a_standby_that_dies_changes_nothing(server: Server) -> None:
    before = status_of(server)
    serving = before["components"]["prefill_TP0"]["pid"]

    def standby() -> list[psutil.Process]:
        found = process_table.find_role(server.processes(), "prefill")
        return [process for process in found if process.pid != serving]

    with ThreadPoolExecutor() as pool:
        body = {"prefill_percentage": 50, "decode_percentage": 50}
        url = f"{server.url}/semi_pd/reallocate"
        answer = pool.submit(requests.post, url, json=body, timeout=300)
        assert process_table.wait_until(lambda: bool(standby()), 120) is not None
        process_table.signal_all(standby(), signal.SIGKILL)
        assert answer.result().status_code == 409
    after = status_of(server)
    rotation, split = "process_rotation_status", "current_sm_allocation"
    assert after[rotation][split] == before[rotation][split]
    assert after["components"] == before["components"]
    assert after[rotation]["failed_moves"] == before[rotation]["failed_moves"] + 1
    require_nothing_leaked(server)


def deaths(server: Server) -> int:
    """How often both workers had to be replaced."""
    return int(status_of(server)["recovery_status"]["worker_deaths"])


def retractions(server: Server) -> int:
    """How often decode has put requests aside."""
    return server.log().count("Retract requests")


def test_rotations_while_memory_runs_out(server: Server, soak_factor: int) -> None:
    """Requests that decode puts aside go on, in the same worker or the next."""
    bodies = [endless(prompt(CROWD_PROMPT, n), CROWD_TOKENS) for n in range(CROWD)]
    expected = client.stream_all(server.url, bodies, limit=4)
    died, put_aside, refusals = deaths(server), [retractions(server)], []
    for _ in range(soak_factor):
        crowd = asyncio.run(switching.while_rotating(server.url, bodies))
        print(crowd)
        assert not mismatches(bodies, expected, crowd.answers)
        put_aside.append(retractions(server))
        refusals += crowd.refusals
    assert put_aside == sorted(set(put_aside)), "nothing was put aside"
    assert None in refusals, refusals
    assert deaths(server) == died
    require_nothing_leaked(server)


def test_all_are_put_aside_when_no_page_is_left(server: Server, faults: Path) -> None:
    """Even the last: it is not ended, but goes on when there are pages again."""
    bodies = [endless(prompt(100, 70 + n), 300) for n in range(STREAMS)]
    expected = client.stream_all(server.url, bodies, limit=4)
    put_aside, full = retractions(server), faults / "full"
    full.touch()
    with ThreadPoolExecutor() as pool:
        streams = pool.submit(client.stream_all, server.url, bodies, limit=STREAMS)
        asked = process_table.wait_until(lambda: retractions(server) > put_aside, 60)
        time.sleep(FULL_S)
        full.unlink()
        assert asked is not None, "there was a page left"
        assert not mismatches(bodies, expected, streams.result())
    require_nothing_leaked(server)


def test_ids_used_again_before_the_switch(server: Server, soak_factor: int) -> None:
    """The standby knows by each id a request that has ended or was aborted."""
    uses, windows = asyncio.run(
        switching.while_ids_are_reused(server, ids=IDS, rotations=2 * soak_factor)
    )
    assert all(use.is_as_meant for use in uses)
    again = [len(reused(uses, *window)) for window in windows]
    print(f"{len(uses)} requests; at the switches {again} of {IDS} ids were others'")
    assert min(again) >= IDS // 2
    assert not wrong(server.url, uses)
    require_nothing_leaked(server)


def test_aborts_throughout_the_switch(server: Server, soak_factor: int) -> None:
    """Each is heard, by whichever worker has the request then, or will have it."""
    uses, refusals = asyncio.run(
        switching.while_aborting(
            server, ids=3 * IDS, rotations=3 * soak_factor, longest=2 * CROWD_PROMPT
        )
    )
    lost = [(use.rid, use.finish) for use in uses if not use.is_as_meant]
    heard = sum(use.is_aborted for use in uses)
    print(f"{heard} of {len(uses)} aborted, {len(lost)} not when told to; {refusals}")
    assert not lost
    assert heard > len(uses) // 2
    assert all(use.finish in ("abort", "length") for use in uses)
    assert None in refusals, refusals
    require_nothing_leaked(server)


def test_a_prompt_that_finds_no_room_goes_back(server: Server, faults: Path) -> None:
    """To those that wait; then it goes on from what is cached of it."""
    bodies = [endless(prompt(LONG_PROMPT, 50 + n), 20) for n in range(LONG_PROMPTS)]
    expected = client.stream_all(server.url, bodies, limit=4)
    server.flush_cache()
    said = "No room for the rest of a prompt"
    before = server.log().count(said)
    (faults / "room").touch()
    disturb.run(server.url, disturb.rotating((60, 40)), times=1, streams=1, tokens=50)
    assert not (faults / "room").exists(), "no prefill worker has started"
    answers = client.stream_all(server.url, bodies, limit=LONG_PROMPTS)
    put_back = server.log().count(said) - before
    print(f"put back {put_back} times")
    assert not mismatches(bodies, expected, answers)
    assert put_back >= LONG_PROMPTS // 2
    require_nothing_leaked(server)
    disturb.run(server.url, disturb.rotating((40, 60)), times=1, streams=1, tokens=50)
