# SPDX-License-Identifier: Apache-2.0
"""Lets SGLang 0.5.17's PD-multiplexing start, so that it can be measured.

Its mixin reads two attributes of the scheduler that have moved to ``scheduler.ps``.
"""


def register() -> None:
    """Entry point ``sglang.srt.plugins``: give both names back, read-only."""
    from sglang.srt.managers.scheduler import Scheduler

    for name in ("gpu_id", "tp_size"):
        if not hasattr(Scheduler, name):
            setattr(Scheduler, name, property(_moved(name)))


def _moved(name: str):  # type: ignore[no-untyped-def]
    return lambda scheduler: getattr(scheduler.ps, name)
