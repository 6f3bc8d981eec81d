# SPDX-License-Identifier: Apache-2.0
"""The server that an example looks at: one of its own, or one that runs already."""

from __future__ import annotations

import argparse
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server_process import ServerFailedError, ServerProcess

TIMEOUT_S = 300.0
STOPPED_WELL = 0
GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg")
"""The NVIDIA driver's, on Linux and under WSL."""


@dataclass(frozen=True)
class ChosenServer:
    """Where a server answers."""

    url: str

    def get(self, path: str) -> Any:
        """The decoded answer to one GET request."""
        return self._ask(urllib.request.Request(self.url + path))

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The decoded answer to one POST request."""
        headers = {"Content-Type": "application/json"}
        return self._ask(
            urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        )

    def status(self) -> Any:
        """What ``/semi_pd/status`` tells."""
        return self.get("/semi_pd/status")

    @staticmethod
    def _ask(request: urllib.request.Request) -> Any:
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:300]
            what = f"{request.full_url}: {error.code} {said}"
            raise ServerFailedError(what) from None
        except urllib.error.URLError as error:
            raise ServerFailedError(f"{request.full_url}: {error.reason}") from None


def usual_dtype() -> str:
    """The model's own type where there is a GPU; float32 is what a CPU is fast with.

    Looks for the driver: importing torch to ask would take seconds.
    """
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1")
    has_gpu = not is_hidden and any(map(os.path.exists, GPU_DEVICES))
    return "auto" if has_gpu else "float32"


def parser(doc: str, name: str) -> argparse.ArgumentParser:
    """The options that such an example has; ``doc`` and ``name`` are its own."""
    made = argparse.ArgumentParser(description=doc.splitlines()[0])
    where = made.add_mutually_exclusive_group(required=True)
    where.add_argument("--model-path", type=Path, help="start a server of this model")
    where.add_argument("--url", help="use the Semi-PD server that answers there")
    made.add_argument(
        "--dtype", default=usual_dtype(), help="of the server started here"
    )
    made.add_argument("--log", type=Path, default=Path(f".demo/{name}.log"))
    return made


@contextmanager
def serve(options: argparse.Namespace, flags: Sequence[str]) -> Iterator[ChosenServer]:
    """The server that was chosen; one that was started here is stopped at the end.

    Raises:
        ServerFailedError: it did not start, or did not end well.
    """
    if options.url:
        yield ChosenServer(options.url.rstrip("/"))
        return
    flags = [*flags, f"--dtype={options.dtype}"]
    with ServerProcess(options.model_path, flags, log=options.log) as server:
        print(server.command)
        print(f"ready after {server.wait_ready():.1f} s", flush=True)
        yield ChosenServer(server.url)
        code = server.stop()
        if code != STOPPED_WELL:
            raise ServerFailedError(f"the server ended with exit code {code}")
