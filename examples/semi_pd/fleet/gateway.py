# SPDX-License-Identifier: Apache-2.0
"""SGLang's gateway: the command line that suits a fleet, and its worker API."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

POLL_S = 0.2
CHANGE_TIMEOUT_S = 60.0

COMMAND_VARIABLE = "SEMI_PD_GATEWAY"
"""Environment variable: the gateway's executable, where it is not installed here."""

SETTINGS = {
    "--policy": "cache_aware",
    # Asked every 2 s, an instance that died gets no requests after 4 s; after three
    # failed requests it gets none for 10 s, whatever its health.
    "--health-check-interval-secs": "2",
    "--health-failure-threshold": "2",
    "--health-success-threshold": "1",
    "--cb-failure-threshold": "3",
    "--cb-timeout-duration-secs": "10",
    # A failed request is tried again for about 4 s, elsewhere once the breaker opened.
    "--retry-max-retries": "8",
    "--retry-initial-backoff-ms": "100",
    "--retry-max-backoff-ms": "1000",
    "--worker-startup-check-interval": "1",
    "--log-level": "warn",
}
"""Options of the gateway that differ from its defaults."""


class GatewayError(RuntimeError):
    """The gateway is not there, or did not do what it was asked."""


def command() -> list[str]:
    """How the gateway is started here.

    Raises:
        GatewayError: it is not installed.
    """
    named = os.environ.get(COMMAND_VARIABLE)
    if named and shutil.which(named):
        return [named, "launch"]
    if importlib.util.find_spec("sglang_router"):
        return [sys.executable, "-m", "sglang_router.launch_router"]
    raise GatewayError(
        "SGLang's gateway is not installed: pip install '.[fleet]' in the clone, or "
        f"name its executable (sglang-router or smg) in ${COMMAND_VARIABLE}"
    )


@dataclass(frozen=True)
class Gateway:
    """A running gateway; ``url`` is where its clients send their requests."""

    url: str

    def is_ready(self) -> bool:
        """Whether it would serve a request: at least one instance is healthy."""
        try:
            return bool(self._ask("GET", "/readiness")["status"] == "ready")
        except OSError:
            return False

    def workers(self) -> dict[str, dict[str, Any]]:
        """What it knows of each instance, by the instance's URL."""
        return {one["url"]: one for one in self._ask("GET", "/workers")["workers"]}

    def healthy(self) -> set[str]:
        """URLs of the instances that get requests."""
        try:
            return {url for url, one in self.workers().items() if one["is_healthy"]}
        except OSError:
            return set()

    def add(self, url: str, *, timeout_s: float = CHANGE_TIMEOUT_S) -> None:
        """Send requests to an instance; returns when it gets them."""
        if url not in self.workers():
            self._ask("POST", "/workers", {"url": url})
        self._wait(lambda: url in self.healthy(), f"did not take {url}", timeout_s)

    def remove(self, url: str, *, timeout_s: float = CHANGE_TIMEOUT_S) -> None:
        """Send no new requests to an instance; those under way go on."""
        known = self.workers().get(url)
        if known is not None:
            self._ask("DELETE", f"/workers/{known['id']}")
        self._wait(lambda: url not in self.workers(), f"kept {url}", timeout_s)

    def _wait(self, holds: Callable[[], bool], what: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not holds():
            if time.monotonic() > deadline:
                raise GatewayError(f"the gateway {what} for {timeout_s:.0f} s")
            time.sleep(POLL_S)

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            if error.code == 503:  # `/readiness` of a gateway without instances
                return json.load(error)
            raise GatewayError(f"{method} {path}: {error.code}") from error
