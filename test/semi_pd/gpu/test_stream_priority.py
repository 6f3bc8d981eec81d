# SPDX-License-Identifier: Apache-2.0
"""Does decode go first where both workers share the SMs? Two MPS clients on a real GPU.

One computes large products without end, as prefill does; the other replays a graph of
small ones, as decode does, and takes the time of each replay.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:  # this file is a program as well, and starts sooner without
    from sglang.semi_pd.partition.mps import MPSDaemon

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

SELF = Path(__file__)
TOKENS, WIDTH, INNER = 8192, 4096, 14336
LAYERS, BATCH = 32, 32
REPLAYS = 150
STARTS_S = 60.0


def busy(priority: int) -> None:
    x = torch.randn(TOKENS, WIDTH, dtype=torch.bfloat16, device="cuda")
    w = torch.randn(WIDTH, INNER, dtype=torch.bfloat16, device="cuda")
    done = 0
    began = time.monotonic()
    with torch.cuda.stream(torch.cuda.Stream(priority=priority)):
        while True:
            for _ in range(20):
                x @ w
            torch.cuda.synchronize()
            done += 20
            print(done / (time.monotonic() - began), flush=True)


def steps(priority: int) -> None:
    x = torch.randn(BATCH, WIDTH, dtype=torch.bfloat16, device="cuda")
    w = [
        torch.randn(WIDTH, WIDTH, dtype=torch.bfloat16, device="cuda")
        for _ in range(LAYERS)
    ]
    stream = torch.cuda.Stream(priority=priority)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        x @ w[0]
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            for one in w:
                torch.nn.functional.silu(x @ one)
        took = []
        for _ in range(REPLAYS):
            began = time.perf_counter()
            graph.replay()
            stream.synchronize()
            took.append(1e3 * (time.perf_counter() - began))
            time.sleep(0.001)
    print(json.dumps(took[10:]), flush=True)


@pytest.fixture(scope="module")
def daemon() -> Iterator[MPSDaemon]:
    from sglang.semi_pd.partition.mps import MPSDaemon

    with tempfile.TemporaryDirectory(prefix="spd-", dir="/tmp") as path:
        one = MPSDaemon(Path(path))
        one.start()
        yield one
        one.stop()


def start(daemon: MPSDaemon, kind: str, priority: int, client_priority: int = 0):
    more = {"CUDA_MPS_CLIENT_PRIORITY": str(client_priority)}
    return subprocess.Popen(
        [sys.executable, str(SELF), kind, str(priority)],
        env={**os.environ, **daemon.client_environment(100), **more},
        stdout=subprocess.PIPE,
        text=True,
    )


def measure(daemon: MPSDaemon, priority: int, client_priority: int = 0) -> float:
    """Decode's median step beside products without end, milliseconds.

    Args:
        priority: of decode's stream; prefill's is 0.
        client_priority: of prefill as an MPS client: 0 is normal, 1 below normal.
    """
    prefill = start(daemon, "busy", 0, client_priority)
    try:
        assert prefill.stdout is not None
        assert select.select([prefill.stdout], [], [], STARTS_S)[0], "not started"
        decode = start(daemon, "steps", priority)
        out, _ = decode.communicate(timeout=STARTS_S)
    finally:
        prefill.kill()
        rest, _ = prefill.communicate()
    took: list[float] = json.loads(out)
    print(
        f"decode's stream {priority}, prefill's client {client_priority}: step P50 "
        f"{median(took):.2f}, P99 {quantiles(took, n=100)[98]:.2f} ms; "
        f"{float(rest.split()[-1]):.0f} products a second"
    )
    return median(took)


def test_the_stream_of_higher_priority_goes_first_across_processes(daemon) -> None:
    assert measure(daemon, -3) < 0.8 * measure(daemon, 0)


def test_the_priority_of_mps_clients_changes_nothing(daemon) -> None:
    """If it does one day, it may replace the priorities of streams."""
    ratio = measure(daemon, 0, client_priority=1) / measure(daemon, 0)
    assert 0.9 < ratio < 1.1


if __name__ == "__main__":
    {"busy": busy, "steps": steps}[sys.argv[1]](int(sys.argv[2]))
