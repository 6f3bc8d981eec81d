# SPDX-License-Identifier: Apache-2.0
"""A real Chromium without a window, driven through its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
from typing_extensions import Self

NAMES = ("chromium", "chromium-browser", "google-chrome")
TIMEOUT_S = 60.0


def find() -> str | None:
    """The browser's program, None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One page of a browser of its own; collects what goes wrong in it.

    Attributes:
        problems: errors of the console, uncaught exceptions, requests that failed or
            were blocked.
        requested: the address of every request that the page made.
    """

    def __init__(self, *, width: int = 1360, height: int = 1000) -> None:
        self._size = (width, height)
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._loaded = asyncio.Event()
        self.problems: list[str] = []
        self.requested: list[str] = []

    async def __aenter__(self) -> Self:
        self._profile = Path(tempfile.mkdtemp(prefix="semi-pd-browser-"))
        program = find()
        assert program is not None
        self._process = subprocess.Popen(
            [
                program,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                "--no-first-run",
                "--remote-debugging-port=0",
                f"--user-data-dir={self._profile}",
                "--window-size={},{}".format(*self._size),
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TZ": "UTC"},
        )
        self._http = aiohttp.ClientSession()
        self._socket = await self._http.ws_connect(
            await self._address(), max_msg_size=0
        )
        self._reader = asyncio.create_task(self._read())
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.send(f"{domain}.enable")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._reader.cancel()
        await self._http.close()
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._profile, ignore_errors=True)

    async def _address(self) -> str:
        told = self._profile / "DevToolsActivePort"
        for _ in range(int(TIMEOUT_S / 0.1)):
            if told.exists() and told.read_text():
                break
            await asyncio.sleep(0.1)
        port = told.read_text().split()[0]
        async with self._http.get(f"http://127.0.0.1:{port}/json/list") as reply:
            pages = [one for one in await reply.json() if one["type"] == "page"]
        return str(pages[0]["webSocketDebuggerUrl"])

    async def send(self, method: str, **parameters: Any) -> Any:
        """One command of the protocol, answered."""
        number = next(self._numbers)
        answer = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        await self._socket.send_json(
            {"id": number, "method": method, "params": parameters}
        )
        return await asyncio.wait_for(answer, TIMEOUT_S)

    async def _read(self) -> None:
        async for message in self._socket:
            said = message.json()
            if "id" in said:
                self._answers.pop(said["id"]).set_result(said.get("result", said))
            else:
                self._note(said["method"], said["params"])

    def _note(self, method: str, said: Any) -> None:
        if method == "Page.loadEventFired":
            self._loaded.set()
        elif method == "Network.requestWillBeSent":
            self.requested.append(said["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(str(said["exceptionDetails"])[:500])
        elif method == "Runtime.consoleAPICalled" and said["type"] in (
            "error",
            "warning",
        ):
            self.problems.append(str(said["args"])[:500])
        elif method == "Log.entryAdded" and said["entry"]["level"] in (
            "error",
            "warning",
        ):
            self.problems.append(said["entry"]["text"])
        elif method == "Network.loadingFailed" and not said.get("canceled"):
            self.problems.append(said["errorText"])

    async def emulate(self, *, dark: bool) -> None:
        """What the reader's system prefers."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.send("Emulation.setEmulatedMedia", features=[scheme])

    async def resize(self, width: int, height: int, *, scale: float = 1) -> None:
        """The size of the window, in CSS pixels."""
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=False,
        )

    async def open(self, url: str) -> None:
        """Go to an address; its scripts have run when this returns."""
        self._loaded.clear()
        await self.send("Page.navigate", url=url)
        await asyncio.wait_for(self._loaded.wait(), TIMEOUT_S)

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        result = await self.send(
            "Runtime.evaluate",
            expression=expression,
            returnByValue=True,
            awaitPromise=True,
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, expression: str, timeout_s: float = 20.0) -> None:
        """Wait until a JavaScript expression is true."""
        for _ in range(int(timeout_s / 0.1)):
            if await self.evaluate(f"Boolean({expression})"):
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"not so after {timeout_s} s: {expression}")

    async def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        height = await self.evaluate("document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": self._size[0], "height": height, "scale": 1}
        shot = await self.send(
            "Page.captureScreenshot", captureBeyondViewport=True, clip=clip
        )
        path.write_bytes(base64.b64decode(shot["data"]))
