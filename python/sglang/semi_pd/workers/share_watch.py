# SPDX-License-Identifier: Apache-2.0
"""A worker on a GPU watches which SMs its forward stream really gets.

A few times a second, while there is work, it queues the SM probe between two forwards
and adds what came back, weighted with the time until the next one, to its record.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from sglang.semi_pd.partition.share_record import ShareRecord, ShareReport
from sglang.semi_pd.partition.sm_probe import SMProbe

if TYPE_CHECKING:
    from pathlib import Path

    import torch

PROBE_INTERVAL_S = 0.1
LONGEST_HOLD_S = 1.0
"""What a probe saw is not taken to hold for longer: there was no work."""


class ShareWatch:
    """Probes a worker's stream and keeps its record.

    Args:
        path: the record.
        sms: SMs that the worker was given.
    """

    def __init__(self, device: torch.device, path: Path, sms: int) -> None:
        self._probe = SMProbe(device)
        self._record = ShareRecord(path)
        self._report = ShareReport(sms=sms)
        self._record.write(self._report)
        self._asked_at = self._seen_at = 0.0
        self._seen = 0
        self._due_at = 0.0
        self._forwards = 0

    def look(self, stream: torch.cuda.Stream, forwards: int) -> None:
        """Between two forwards: take an answer, ask again if it is time.

        Args:
            forwards: how many there have been; nothing is asked while it stands still.
        """
        now = time.monotonic()
        if now < self._due_at:
            return
        if self._probe.is_asking:
            answer = self._probe.answer()
            if answer is None:
                return
            self._seen, self._seen_at = len(answer), self._asked_at
        if forwards == self._forwards:
            return
        self._forwards = forwards
        self._settle(now)
        self._probe.ask(stream)
        self._asked_at, self._due_at = now, now + PROBE_INTERVAL_S

    def note_split(self, serial: int, sms: int, cpu_us: float) -> None:
        """A split was taken: write it down, and probe without delay."""
        self._report = replace(
            self._report,
            serial=serial,
            sms=sms,
            moves=self._report.moves + 1,
            slowest_move_us=max(cpu_us, self._report.slowest_move_us),
        )
        self._record.write(self._report)
        self._due_at = 0.0

    def _settle(self, now: float) -> None:
        """Count what the last probe saw for the time since it was asked."""
        if not self._seen_at:
            return
        held = min(now - self._seen_at, LONGEST_HOLD_S)
        self._report = replace(
            self._report,
            sm_seconds=self._report.sm_seconds + self._seen * held,
            seconds=self._report.seconds + held,
        )
        self._record.write(self._report)
        self._seen_at = 0.0
