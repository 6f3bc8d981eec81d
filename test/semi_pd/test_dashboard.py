# SPDX-License-Identifier: Apache-2.0
"""The dashboard in a real browser, over HTTP, on the routes that a server has.

``SEMI_PD_SCREENSHOTS=FOLDER`` keeps what was seen.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import headless_browser
import pytest
from headless_browser import Page
from served_instance import HTTPServer, ServedInstance
from sglang.semi_pd.sm_allocation import SMAllocation

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
