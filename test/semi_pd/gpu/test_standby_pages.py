# SPDX-License-Identifier: Apache-2.0
"""A standby warms up and captures its graphs without touching a live page or row."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.server,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

PATTERN = 0x5A
ROTATION_TIMEOUT_S = 240.0


def attached(run_directory: Path) -> Any:
    """The memory of a running instance, mapped here without a lease."""
    from sglang.semi_pd.utils import InstanceRole
    from sglang.semi_pd.workers.resident_memory import ResidentMemory

    (instance,) = run_directory.glob("run-*")
    return ResidentMemory.attach(
        instance / "resident-0",
        role=InstanceRole.RESIDENT,
        generation=0,
        device=torch.device("cuda:0"),
    )


def live_parts(memory: Any, page_size: int) -> list[torch.Tensor]:
    """All KV slots but those of page 0, and all rows but row 0, as bytes."""
    manifest = memory.manifest
    buffers = [memory.tensor(ref)[page_size:] for ref in manifest.kv_buffers]
    rows = memory.tensor(manifest.req_to_token)[1:]
    return [part.view(torch.uint8) for part in (*buffers, rows)]


@pytest.mark.parametrize("backend", ["triton", "fa3"])
def test_standby_writes_to_the_padding_page_only(
    backend: str, tiny_model: Path
) -> None:
    """The prefix cache is off: what it holds would be given up, not overwritten."""
    from harness import Server

    flags = [
        "--enable-semi-pd",
        "--enable-sm-overlap",
        *("--initial-prefill-sm", "90", "--initial-decode-sm", "100"),
        *("--attention-backend", backend, "--max-total-tokens", "65536"),
        *("--dtype", "bfloat16", "--disable-radix-cache"),
    ]
    server = Server(name=f"standby-{backend}", model=tiny_model, flags=flags)
    try:
        server.start().wait_ready()
        memory = attached(server.run_directory)
        parts = live_parts(memory, memory.table.layout.page_size)
        for part in parts:
            part.fill_(PATTERN)
        torch.cuda.synchronize()
        split = {"prefill_percentage": 100, "decode_percentage": 100}
        reply = server.post("/semi_pd/reallocate", split, timeout_s=ROTATION_TIMEOUT_S)
        assert reply.status_code == 200, reply.text
        wait_for_split(server, split)
        torch.cuda.synchronize()
        changed = [place for place, part in enumerate(parts) if (part != PATTERN).any()]
        assert not changed, f"of {len(parts)} buffers these changed: {changed}"
    finally:
        server.clean()
        shutil.rmtree(server.place, ignore_errors=True)


def wait_for_split(server: Any, split: dict[str, int]) -> None:
    deadline = time.monotonic() + ROTATION_TIMEOUT_S
    while True:
        rotation = server.get("/semi_pd/status").json()["process_rotation_status"]
        if rotation["current_sm_allocation"] == split:
            return
        assert time.monotonic() < deadline, rotation
        time.sleep(0.5)
