# SPDX-License-Identifier: Apache-2.0
"""The dashboard in a real browser, over HTTP, on the routes that a server has.

The figures come from the parts that make a server's, on a clock of the test: an hour
of an instance in milliseconds. ``SEMI_PD_SCREENSHOTS=FOLDER`` keeps what was seen.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import headless_browser
import pytest
import upstream_auth
import uvicorn
from fastapi import FastAPI
from headless_browser import Page
from sglang.semi_pd.monitoring.history import History
from sglang.semi_pd.monitoring.instance_view import InstanceView
from sglang.semi_pd.sm_allocation import SMAllocation
from sglang.semi_pd.utils import InstanceRole
from status_document import Parts

auth = upstream_auth.load()

from sglang.semi_pd.server import http_routes  # noqa: E402

pytestmark = pytest.mark.skipif(
    headless_browser.find() is None, reason="no Chromium; apt-get install chromium"
)

KEY = "key-canary"
CURVES = 6
IS_SHOWN = (
    f"document.querySelectorAll('svg.plot').length === {CURVES}"
    " && document.querySelector('#state').textContent === 'running'"
    " && document.querySelector('.tile')"
)


class ServedInstance:
    """An instance behind HTTP, without workers."""

    def __init__(self, api_key: str | None = None) -> None:
        self.parts = Parts()
        self.parts.now_s = 1_790_000_000.0
        self.server_args = SimpleNamespace(
            api_key=api_key, admin_api_key=None, enable_metrics=False
        )
        self.rotation = self.parts.rotation
        self.history = History(
            lambda: InstanceView.from_status(self.get_status()),
            clock=self.parts.clock,
        )

    def get_status(self) -> dict[str, Any]:
        status = self.parts.status()
        status["unified_memory_status"]["memory_usage"]["peak_blocks"] = 640
        return status

    def live(self, samples: int) -> None:
        """Serve a load that comes in waves, with a move of the split for each wave."""
        parts = self.parts
        for number in range(samples):
            wave = math.sin(number / 40)
            parts.serve(12, ttft_ms=90 + 60 * wave, tpot_ms=24 - 8 * wave)
            parts.now_s -= 8.0
            parts.report(InstanceRole.PREFILL, max(0, int(6 * wave)))
            parts.blocks_by_role.update(
                prefill=int(120 + 80 * wave), decode=int(420 - 160 * wave)
            )
            if number % 5 == 0:
                parts.controller.tick()
            if number % 125 == 124:
                share = (
                    60 if parts.rotation.current_allocation.decode_share < 0.4 else 70
                )
                parts.rotation.request_sm_reallocation(SMAllocation(share, 100 - share))
            self.history.take()

    def app(self) -> FastAPI:
        app = FastAPI()
        http_routes.install(app, self)  # type: ignore[arg-type]

        async def models() -> dict[str, Any]:
            return {"data": [{"id": "meta-llama/Llama-3.1-8B-Instruct"}]}

        app.add_api_route("/v1/models", models)
        if self.server_args.api_key:
            http_routes.add_key_checks(
                auth.add_api_key_middleware,
                app,
                api_key=self.server_args.api_key,
                admin_api_key=None,
            )
        return app


class HTTPServer:
    """The instance's application on a port of the loopback."""

    def __init__(self, instance: ServedInstance) -> None:
        config = uvicorn.Config(instance.app(), port=0, log_level="error")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/semi_pd/"

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()


def serve(instance: ServedInstance) -> Iterator[str]:
    server = HTTPServer(instance)
    yield server.url
    server.stop()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    instance = ServedInstance()
    instance.live(500)
    yield from serve(instance)


@pytest.fixture
def empty_url() -> Iterator[str]:
    yield from serve(ServedInstance())


@pytest.fixture
def locked_url() -> Iterator[str]:
    instance = ServedInstance(KEY)
    instance.live(20)
    yield from serve(instance)


def in_browser(steps: Callable[[Page], Awaitable[None]]) -> None:
    async def run() -> None:
        async with Page() as page:
            await page.resize(1360, 1000)
            await steps(page)

    asyncio.run(run())


async def keep(page: Page, name: str, folder: Path) -> None:
    path = Path(os.environ.get("SEMI_PD_SCREENSHOTS", folder)) / f"{name}.png"
    await page.screenshot(path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_it_shows_the_instance_without_an_error(url: str, tmp_path: Path) -> None:
    async def steps(page: Page) -> None:
        await page.open(url)
        await page.until(IS_SHOWN)
        await page.until("document.querySelector('#model').textContent")
        text = await page.evaluate("document.body.innerText")
        for shown in ("Llama-3.1-8B", "TTFT P95", "target 100 ms", "The split moved"):
            assert shown in text, shown
        paths = "[...document.querySelectorAll('svg .line')]"
        lengths = await page.evaluate(
            f"{paths}.map(one => one.getAttribute('d').length)"
        )
        assert len(lengths) == 13 and min(lengths) > 100, lengths
        targets = "document.querySelectorAll('svg .target').length"
        assert await page.evaluate(targets) == 2
        for scheme in ("light", "dark"):
            await page.emulate(dark=scheme == "dark")
            await page.until(f"document.documentElement.dataset.theme === '{scheme}'")
            await keep(page, f"dashboard-{scheme}", tmp_path)
        assert page.problems == []
        origin = url.removesuffix("semi_pd/")
        assert all(one.startswith((origin, "data:")) for one in page.requested)

    in_browser(steps)


def test_it_goes_on_asking_for_what_is_new(url: str) -> None:
    async def steps(page: Page) -> None:
        await page.open(url)
        await page.until(IS_SHOWN)
        await asyncio.sleep(5)
        asked = [one for one in page.requested if "history" in one]
        assert "since=0" in asked[0]
        assert len(asked) >= 3 and all("since=500" in one for one in asked[1:])

    in_browser(steps)


def test_the_crosshair_shows_the_figures_of_its_moment(url: str) -> None:
    async def steps(page: Page) -> None:
        await page.open(url)
        await page.until(IS_SHOWN)
        legend = "document.querySelectorAll('.legend')[2].innerText"
        newest = await page.evaluate(legend)
        box = await page.evaluate(
            "(({x, y, width, height}) => [x + width / 2, y + height / 2])"
            "(document.querySelectorAll('svg.plot')[2].getBoundingClientRect())"
        )
        x, y = box
        await page.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        await page.until(f"document.querySelectorAll('.cross').length === {CURVES}")
        assert await page.evaluate(legend) != newest

    in_browser(steps)


def test_a_new_instance_has_an_empty_page(empty_url: str, tmp_path: Path) -> None:
    async def steps(page: Page) -> None:
        await page.open(empty_url)
        await page.until(IS_SHOWN)
        assert "Nothing has happened" in await page.evaluate("document.body.innerText")
        await keep(page, "dashboard-empty", tmp_path)
        assert page.problems == []

    in_browser(steps)


def test_it_fits_a_phone(url: str, tmp_path: Path) -> None:
    async def steps(page: Page) -> None:
        await page.resize(390, 844)
        await page.open(url)
        await page.until(IS_SHOWN)
        assert await page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.problems == []

    in_browser(steps)


def test_it_asks_for_the_key_and_keeps_it_to_itself(
    locked_url: str, tmp_path: Path
) -> None:
    async def steps(page: Page) -> None:
        await page.open(locked_url)
        await page.until("!document.querySelector('#ask-key').hidden")
        await keep(page, "dashboard-key", tmp_path)
        await page.evaluate(
            f"document.querySelector('#key').value = '{KEY}',"
            "document.querySelector('#ask-key button').click()"
        )
        await page.until(IS_SHOWN)
        assert not any(KEY in one for one in page.requested)
        assert KEY not in await page.evaluate("document.documentElement.outerHTML")
        refused = "the server responded with a status of 401"
        assert all(refused in one for one in page.problems), page.problems

    in_browser(steps)


def test_what_the_server_says_is_shown_as_text(tmp_path: Path) -> None:
    instance = ServedInstance()
    instance.live(5)
    markup = "<img src=x onerror=document.title='broken'>"
    instance.parts.mechanism.problem = markup
    instance.rotation.request_sm_reallocation(SMAllocation(50, 50))
    instance.history.take()
    server = HTTPServer(instance)

    async def steps(page: Page) -> None:
        await page.open(server.url)
        await page.until(IS_SHOWN)
        assert markup in await page.evaluate("document.body.innerText")
        assert await page.evaluate("document.title") == "Semi-PD"
        assert page.problems == []

    in_browser(steps)
    server.stop()
