# SPDX-License-Identifier: Apache-2.0
"""The share that each role really had, over the last seconds.

On a GPU workers note which SMs a probe kernel ran on, and for how long that held. On a
CPU host it is the part of the cores' time that a role's processes took, which is less
than its share while it has nothing to do.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sglang.semi_pd.partition import share_table
from sglang.semi_pd.partition.share_record import ShareRecord, ShareReport
from sglang.semi_pd.sm_allocation import SMAllocation
from sglang.semi_pd.utils import InstanceRole

logger = logging.getLogger(__name__)

WINDOW_S = 10.0


@dataclass(frozen=True, slots=True)
class Count:
    """What the processes of a role had since they began.

    Attributes:
        had: in units of ``share times seconds``; over the seconds a share, 0 to 1.
        seconds: in which it was measured.
        processes: what tells them from those of another pair.
    """

    had: float
    seconds: float
    processes: tuple[int | Path, ...]


class ShareMeter(Protocol):
    """Counts what a role had."""

    measured_by: str

    def count(self, role: InstanceRole) -> Count:
        """The role's counters now."""

    def details(self, role: InstanceRole) -> dict[str, float]:
        """What else there is to say about a role."""

    def given(self, asked: SMAllocation) -> str:
        """What the workers may use of the device, as a table; empty if all is said."""


@dataclass(frozen=True, slots=True)
class _Sample:
    at: float
    count: Count

    def began_anew_since(self, before: _Sample) -> bool:
        now, then = self.count, before.count
        is_another_pair = now.processes != then.processes
        return is_another_pair or now.had < then.had or now.seconds < then.seconds


class RealisedShare:
    """Shares over a sliding window, from counters that only grow.

    Args:
        meter: the counters; those of new workers start a new window, and so does one
            that falls.
        clock: seconds, growing.
    """

    def __init__(
        self, meter: ShareMeter, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._meter, self._clock = meter, clock
        self._lock = threading.Lock()
        self._samples: dict[InstanceRole, deque[_Sample]] = {
            role: deque() for role in InstanceRole if role.is_worker
        }

    def sample(self) -> None:
        """Read the counters; call it more often than the window is long."""
        with self._lock:
            self._sample()

    def _sample(self) -> None:
        now = self._clock()
        for role, samples in self._samples.items():
            sample = _Sample(now, self._meter.count(role))
            if samples and sample.began_anew_since(samples[-1]):
                samples.clear()
            samples.append(sample)
            while len(samples) > 2 and samples[1].at <= now - WINDOW_S:
                samples.popleft()

    def get_status(self) -> dict[str, object]:
        """By role: the share in percent, None where there is nothing to go by."""
        with self._lock:
            self._sample()
            shares = {role.value: self._of(role) for role in self._samples}
        return {"measured_by": self._meter.measured_by, **shares}

    def log_given(self, asked: SMAllocation) -> None:
        """At the start: what became of the percentages that were asked for."""
        table = self._meter.given(asked)
        if table:
            logger.info("%s", table)

    def as_allocation(self) -> dict[str, float] | None:
        """Both shares under the names that ``SMAllocation`` has for them, if known."""
        with self._lock:
            self._sample()
            shares = {
                f"{role.value}_percentage": self._of(role)["percentage"]
                for role in self._samples
            }
        known = {name: share for name, share in shares.items() if share is not None}
        return known if len(known) == len(shares) else None

    def _of(self, role: InstanceRole) -> dict[str, float | None]:
        samples = self._samples[role]
        first, last = samples[0].count, samples[-1].count
        seconds = last.seconds - first.seconds
        percentage = None
        if seconds > 0:
            percentage = round(100 * (last.had - first.had) / seconds, 2)
        return {
            "percentage": percentage,
            "seconds": round(seconds, 3),
            **self._meter.details(role),
        }


class ProbeMeter:
    """SMs as the workers' probes saw them.

    Args:
        paths: the records of a role's processes.
        sms_of_device: asked once there is something to divide by it.
    """

    measured_by = "SM probe"

    def __init__(
        self,
        paths: Callable[[InstanceRole], Iterable[Path]],
        sms_of_device: Callable[[], int],
    ) -> None:
        self._paths, self._sms_of_device = paths, sms_of_device
        self._records: dict[InstanceRole, dict[Path, ShareRecord]] = {}

    def count(self, role: InstanceRole) -> Count:
        reports = [report for report in self._reports(role) if report.seconds]
        processes = tuple(self._records[role])
        if not reports:
            return Count(0.0, 0.0, processes)
        had = sum(report.sm_seconds for report in reports)
        seconds = sum(report.seconds for report in reports)
        return Count(had / self._sms_of_device(), seconds, processes)

    def details(self, role: InstanceRole) -> dict[str, float]:
        reports = self._reports(role)
        if not reports:
            return {}
        return {
            "sms": reports[0].sms,
            "moves": reports[0].moves,
            "slowest_move_us": max(report.slowest_move_us for report in reports),
        }

    def given(self, asked: SMAllocation) -> str:
        roles = [role for role in InstanceRole if role.is_worker]
        sms = {role: one[0].sms for role in roles if (one := self._reports(role))}
        return share_table.table(asked, sms, self._sms_of_device()) if sms else ""

    def _reports(self, role: InstanceRole) -> list[ShareReport]:
        paths = [path for path in self._paths(role) if path.exists()]
        records = self._records.get(role, {})
        known = {path: records.get(path) or ShareRecord(path) for path in paths}
        self._records[role] = known  # those of workers that have gone are let go of
        return [record.read() for record in known.values()]


class CoreMeter:
    """Cores, by the CPU time of a role's processes.

    Args:
        pids: the processes of a role.
        cores: how many there are to share.
    """

    measured_by = "CPU time"

    def __init__(
        self, pids: Callable[[InstanceRole], Iterable[int]], cores: int
    ) -> None:
        self._pids, self._cores = pids, cores
        self._seconds_per_tick = 1 / os.sysconf("SC_CLK_TCK")

    def count(self, role: InstanceRole) -> Count:
        pids = tuple(self._pids(role))
        busy = sum(self._cpu_seconds(pid) for pid in pids)
        return Count(busy / self._cores, time.monotonic() if pids else 0.0, pids)

    def details(self, role: InstanceRole) -> dict[str, float]:
        return {}

    def given(self, asked: SMAllocation) -> str:
        return ""

    def _cpu_seconds(self, pid: int) -> float:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:  # it has just ended
            return 0.0
        fields = stat.rpartition(")")[2].split()
        user, system = fields[11:13]
        return (int(user) + int(system)) * self._seconds_per_tick
