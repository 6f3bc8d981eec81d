# SPDX-License-Identifier: Apache-2.0
"""Makes a worker fail on demand, so that recovery from it can be tried and measured.

For a server that has this folder on ``PYTHONPATH`` and ``FAULT_DIRECTORY`` in its
environment. What happens is chosen by a file in that directory:

    PID      this process stores far outside of its GPU memory, at once
    crash    the next worker that starts is ended by SIGABRT; this file goes with it
    gate     ... ends with one line and exit code 1, as when its numerics gate fails
    hang     ... stands still for ever
    forward  ... is ended by SIGABRT when it is to compute its first batch
    room     the next prefill worker that starts finds no room for the rest of a prompt,
             twice in a row of each six times that it looks
    full     decode workers lease no page while this file is there
    poison   while this file is there, the worker that it names (prefill or decode) is
             ended by SIGABRT when it is to compute a request that begins with POISON
    still    the worker that it names does nothing for a while when it is to compute its
             next batch; this file goes with it
    recover  prefill workers end when they are told what dead ones left, while this file
             is there
"""

import contextlib
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FAR_BYTES = 1 << 45
POISON = [13, 13, 13, 13]
POLL_S = 0.01
STILL_S = 7.0


def register() -> None:
    """Entry point ``sglang.srt.plugins``: watch the directory, if there is one."""
    directory = os.environ.get("FAULT_DIRECTORY")
    if directory:
        for name, fail in AT_START.items():
            if _take(Path(directory) / name):
                fail()
        if _is("prefill") and _take(Path(directory) / "room"):
            _find_no_room()
        if _is("decode"):
            _lease_none_while(Path(directory) / "full")
        if _is("prefill"):
            _end_at_recovery_while(Path(directory) / "recover")
        if _is("prefill") or _is("decode"):
            _hinder_batches(Path(directory) / "poison", Path(directory) / "still")
        mine = Path(directory) / str(os.getpid())
        threading.Thread(target=_await, args=(mine,), daemon=True).start()


def _take(file: Path) -> bool:
    """Whether the file was there, and this process is the one that took it."""
    with contextlib.suppress(FileNotFoundError):
        file.unlink()
        return True
    return False


def _fail_gate() -> None:
    print("BF16 products are wrong, as far as this trial goes", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)


def _hang() -> None:
    while True:
        time.sleep(3600)


def _abort_at_first_batch() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(
        "sglang.srt.managers.scheduler.Scheduler.run_batch",
        lambda *_, **__: os.abort(),
        HookType.AROUND,
    )


def _is(role: str) -> bool:
    import setproctitle

    return f"semi_pd_{role}" in setproctitle.getproctitle()


def _names_this(file: Path) -> bool:
    """Whether the file is there and this is the worker that it names."""
    with contextlib.suppress(FileNotFoundError):
        return _is(file.read_text())
    return False


def _lease_none_while(file: Path) -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    def extend_lease(original: Callable[..., None], *arguments: Any) -> None:
        if not file.exists():
            original(*arguments)

    HookRegistry.register(
        "sglang.semi_pd.workers.leased_allocator.LeasedAllocator._extend_lease",
        extend_lease,
        HookType.AROUND,
    )


def _end_at_recovery_while(file: Path) -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    def recover(original: Callable[..., None], *arguments: Any) -> None:
        if file.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        original(*arguments)

    HookRegistry.register(
        "sglang.semi_pd.workers.prefill_succession.PrefillSuccession.recover",
        recover,
        HookType.AROUND,
    )


def _hinder_batches(poison: Path, still: Path) -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    def run_batch(original: Callable[..., Any], *arguments: Any, **others: Any) -> Any:
        begins = [
            list(req.origin_input_ids[: len(POISON)]) for req in arguments[1].reqs
        ]
        if POISON in begins and _names_this(poison):
            os.abort()
        if _names_this(still) and _take(still):
            time.sleep(STILL_S)
        return original(*arguments, **others)

    HookRegistry.register(
        "sglang.srt.managers.scheduler.Scheduler.run_batch",
        run_batch,
        HookType.AROUND,
    )


def _find_no_room() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    looks = itertools.count()

    def has_room_for(original: Callable[..., bool], *arguments: Any) -> bool:
        return next(looks) % 6 > 1 and original(*arguments)

    HookRegistry.register(
        "sglang.semi_pd.workers.prefill_room.PrefillRoom.has_room_for",
        has_room_for,
        HookType.AROUND,
    )


AT_START: dict[str, Callable[[], None]] = {
    "crash": os.abort,
    "gate": _fail_gate,
    "hang": _hang,
    "forward": _abort_at_first_batch,
}


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
