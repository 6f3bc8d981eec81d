# SPDX-License-Identifier: Apache-2.0
"""One plain server and one Semi-PD server for the whole session.

Both compute with one thread a process: they share few cores with each other and with
the tests.

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

import pytest
from harness import COMMON_FLAGS, Server
from workload import IS_SOAK

TIMEOUT_S = 5400 if IS_SOAK else 1200
_LAST = ("test_start_time", "test_shutdown")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What ends a server comes last; all of it may take its time."""
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
        environment={"OMP_NUM_THREADS": "1"},
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


@pytest.fixture(autouse=True)
def servers_are_alive(request: pytest.FixtureRequest) -> None:
    """A server that died fails the tests after it quickly, and says so."""
    for name in ("plain", "semi_pd"):
        if name in request.fixturenames:
            request.getfixturevalue(name).require_alive()


@pytest.fixture
def needs_semi_pd(second_flags: list[str]) -> None:
    """Skips where the second server is a plain one as well."""
    if not any(flag.startswith("--enable-semi-pd") for flag in second_flags):
        pytest.skip("the second server is not a Semi-PD server")
