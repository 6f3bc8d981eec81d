# SPDX-License-Identifier: Apache-2.0
"""Servers for the whole session: a plain one, a Semi-PD one, and one that rotates.

Environment, to try the tests themselves:
    SEMI_PD_TEST_FLAGS   flags of the second server, instead of --enable-semi-pd
    SEMI_PD_TEST_MODEL   model of the second server
    SEMI_PD_TEST_ATTACH  "plain port,second port" of servers that run already
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import disturb
import pytest
from harness import COMMON_FLAGS, REPOSITORY, Server
from workload import IS_SOAK, SERVER_ENVIRONMENT

TIMEOUT_S = 5400 if IS_SOAK else 1200
HANG_S = 60.0 if IS_SOAK else 10.0
FAULT_PLUGIN = REPOSITORY / "benchmark" / "semi_pd" / "fault_plugin"
POOL_TOKENS = 14_000
"""Enough for the streams of ``disturb`` and a rehearsal; a crowd needs more."""
_LAST = ("test_slo_class_served", "test_start_time", "test_shutdown")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What ends a server comes last; before it what would wait until the server has had
    nothing to do for a while. All of it may take its time."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))

    def rank(item: pytest.Item) -> int:
        stem = item.path.stem
        return _LAST.index(stem) + 1 if stem in _LAST else 0

    items.sort(key=rank)


def _attached_port(place: int) -> int:
    ports = os.environ.get("SEMI_PD_TEST_ATTACH", "")
    return int(ports.split(",")[place]) if ports else 0


def _serve(name: str, place: int, model: Path, flags: list[str]) -> Iterator[Server]:
    port = _attached_port(place)
    if port:
        yield Server.attach(name, port, model)
        return
    server = Server(
        name=name,
        model=model,
        flags=[*COMMON_FLAGS, *flags],
    )
    try:
        yield server.start().wait_ready()
        server.stop()
    finally:
        server.clean()


@pytest.fixture(scope="session")
def plain(tiny_model: Path) -> Iterator[Server]:
    """SGLang as it is."""
    yield from _serve("plain", 0, tiny_model, [])


@pytest.fixture(scope="session")
def second_flags() -> list[str]:
    """What makes the second server differ from the plain one."""
    return shlex.split(os.environ.get("SEMI_PD_TEST_FLAGS", "--enable-semi-pd"))


@pytest.fixture(scope="session")
def semi_pd(tiny_model: Path, second_flags: list[str]) -> Iterator[Server]:
    """The server under test."""
    model = Path(os.environ.get("SEMI_PD_TEST_MODEL", tiny_model))
    yield from _serve("semi-pd", 1, model, second_flags)


@pytest.fixture(scope="session")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where ``fault_plugin`` of the server that rotates looks for what is to fail."""
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="session")
def rotating(tiny_model: Path, faults: Path) -> Iterator[Server]:
    """A server whose workers are replaced and killed: ``mps`` on a CPU host."""
    started = Server(
        name="rotation",
        model=tiny_model,
        flags=[
            *COMMON_FLAGS,
            "--enable-semi-pd",
            "--sm-partition-backend=mps",
            f"--max-total-tokens={POOL_TOKENS}",
            f"--worker-hang-timeout={HANG_S:g}",
            "--standby-timeout=30",
        ],
        environment={
            **SERVER_ENVIRONMENT,
            "PYTHONPATH": str(FAULT_PLUGIN),
            "FAULT_DIRECTORY": str(faults),
            # Each new worker would compile before its first mask: longer than it lives.
            "TORCHDYNAMO_DISABLE": "1",
        },
    )
    try:
        started.start().wait_ready()
        # The first of its kind sets up what it needs: leaks are looked for after it.
        for how in (disturb.rotating((60, 40)), disturb.killing("decode")):
            disturb.run(started.url, how, times=1, streams=2, tokens=50)
        yield started
        started.stop()
    finally:
        started.clean()


@pytest.fixture(autouse=True)
def servers_are_alive(request: pytest.FixtureRequest) -> None:
    """A server that died fails the tests after it quickly, and says so."""
    for name in ("plain", "semi_pd", "rotating"):
        if name in request.fixturenames:
            request.getfixturevalue(name).require_alive()


@pytest.fixture
def needs_semi_pd(second_flags: list[str]) -> None:
    """Skips where the second server is a plain one as well."""
    if not any(flag.startswith("--enable-semi-pd") for flag in second_flags):
        pytest.skip("the second server is not a Semi-PD server")
