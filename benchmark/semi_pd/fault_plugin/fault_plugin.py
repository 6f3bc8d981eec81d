# SPDX-License-Identifier: Apache-2.0
"""Makes a worker's GPU fail on demand, so that recovery from it can be measured.

In a server that has this folder on ``PYTHONPATH`` and ``FAULT_DIRECTORY`` in its
environment, a process stores far outside of its GPU memory as soon as a file named
after its PID is in that directory.
"""

import os
import threading
import time
from pathlib import Path

FAR_BYTES = 1 << 45
POLL_S = 0.01


def register() -> None:
    """Entry point ``sglang.srt.plugins``: watch the directory, if there is one."""
    directory = os.environ.get("FAULT_DIRECTORY")
    if directory:
        mine = Path(directory) / str(os.getpid())
        threading.Thread(target=_await, args=(mine,), daemon=True).start()


def _await(mine: Path) -> None:
    while not mine.exists():
        time.sleep(POLL_S)
    mine.unlink()
    _store_far_away()


def _store_far_away() -> None:
    import torch
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator]
    def store(start, offset):  # type: ignore[no-untyped-def]
        tl.store(start + offset, 1)

    store[(1,)](torch.zeros(1, dtype=torch.int8, device="cuda"), FAR_BYTES)
