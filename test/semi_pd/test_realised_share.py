# SPDX-License-Identifier: Apache-2.0
"""What was realised of a split: records, windows, CPU time."""

from __future__ import annotations

import logging
import os
import struct
import subprocess
import threading
import time

import pytest
from sglang.semi_pd.errors import RotationError
from sglang.semi_pd.partition import green_split
from sglang.semi_pd.partition.green_split import GreenSplit
from sglang.semi_pd.partition.realised_share import (
    CoreMeter,
    ProbeMeter,
    RealisedShare,
)
from sglang.semi_pd.partition.share_record import ShareRecord, ShareReport
from sglang.semi_pd.sm_allocation import SMAllocation
from sglang.semi_pd.utils import InstanceRole
from sglang.semi_pd.workers.messages import TakeSMs

PREFILL, DECODE = InstanceRole.PREFILL, InstanceRole.DECODE


def record_of(folder, role):
    return folder / f"share-{role.value}"


def write(folder, role, **values):
    record = ShareRecord(record_of(folder, role))
    record.write(ShareReport(**values))
    record.close()


def test_a_record_says_what_was_written_last(tmp_path):
    writer, reader = (ShareRecord(tmp_path / "share") for _ in range(2))
    assert reader.read() == ShareReport()
    report = ShareReport(7, 96, 12.5, 0.25, 3, 41.5)
    writer.write(report)
    assert reader.read() == report


def test_the_start_tells_the_sms_of_each_share(tmp_path, caplog):
    """As the workers found them; nothing where there are none, as on a CPU host."""
    caplog.set_level(logging.INFO)
    meter = ProbeMeter(lambda role: [record_of(tmp_path, role)], lambda: 132)
    shares = RealisedShare(meter)
    shares.log_given(SMAllocation(70, 30))
    RealisedShare(CoreMeter(lambda role: [], 2)).log_given(SMAllocation(70, 30))
    assert not caplog.records
    write(tmp_path, PREFILL, sms=96)
    write(tmp_path, DECODE, sms=36)
    shares.log_given(SMAllocation(70, 30))
    (record,) = caplog.records
    assert record.getMessage().splitlines() == [
        "share requested -> SMs (rounded)",
        "  prefill  70 % ->  96 of 132 (72.7 %)",
        "  decode   30 % ->  36 of 132 (27.3 %)",
    ]


def test_a_record_is_never_read_half_written(tmp_path):
    writer, reader = (ShareRecord(tmp_path / "share") for _ in range(2))
    ended = threading.Event()

    def write_on() -> None:
        count = 0
        while not ended.is_set():
            count += 1
            writer.write(ShareReport(count, count, count, count, count, count))

    thread = threading.Thread(target=write_on)
    thread.start()
    try:
        for _ in range(2000):
            report = reader.read()
            assert report.serial == report.moves == report.slowest_move_us
    finally:
        ended.set()
        thread.join()


def test_a_writer_that_was_killed_in_a_write_does_not_hold_its_readers(tmp_path):
    writer, early, late = (ShareRecord(tmp_path / "share") for _ in range(3))
    report = ShareReport(7, 96, 12.5, 0.25, 3, 41.5)
    writer.write(report)
    assert early.read() == report
    with (tmp_path / "share").open("r+b") as file:
        file.write(struct.pack("<Q", 3))  # odd: a write has begun
    assert early.read() == report, "what it read last"
    assert late.read() == ShareReport()


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_share_over_the_window_from_probe_counters(tmp_path):
    clock = Clock()
    meter = ProbeMeter(lambda role: [record_of(tmp_path, role)], lambda: 132)
    realised = RealisedShare(meter, clock)
    assert realised.as_allocation() is None, "nothing was measured yet"
    for second in range(30):
        clock.now += 1
        sms = 96 if second < 15 else 64
        before = meter.count(PREFILL).had * 132
        write(tmp_path, PREFILL, sm_seconds=before + sms, seconds=second + 1.0)
        write(tmp_path, DECODE, sm_seconds=33.0 * (second + 1), seconds=second + 1.0)
        realised.sample()
    assert realised.as_allocation() == {
        "prefill_percentage": pytest.approx(100 * 64 / 132, abs=0.01),
        "decode_percentage": pytest.approx(25.0, abs=0.01),
    }
    status = realised.get_status()
    assert status["measured_by"] == "SM probe"
    assert status["prefill"]["seconds"] == pytest.approx(10, abs=1)


def test_new_workers_start_a_new_window(tmp_path):
    meter = ProbeMeter(lambda role: [record_of(tmp_path, role)], lambda: 100)
    realised = RealisedShare(meter, Clock())
    for role in (PREFILL, DECODE):
        write(tmp_path, role, sm_seconds=900.0, seconds=10.0)
    realised.sample()
    for sm_seconds, seconds in ((5.0, 0.1), (55.0, 1.1)):
        for role in (PREFILL, DECODE):
            write(tmp_path, role, sm_seconds=sm_seconds, seconds=seconds)
        realised.sample()
    assert realised.get_status()["decode"]["percentage"] == 50.0


def test_cpu_time_of_a_busy_process_is_its_share_of_the_cores():
    meter = CoreMeter(lambda role: [os.getpid()], cores=4)
    realised = RealisedShare(meter)
    realised.sample()
    began, used = time.monotonic(), time.process_time()
    while time.process_time() - used < 0.3:
        sum(range(1000))
    had = 100 * (time.process_time() - used) / (time.monotonic() - began) / 4
    share = realised.as_allocation()["prefill_percentage"]
    assert share == pytest.approx(had, abs=5), "a clock tick is 10 ms"


def test_cpu_time_that_new_workers_bring_along_is_not_of_the_window():
    """To start a worker takes seconds of CPU time; none of them was spent serving."""
    idle = subprocess.Popen(["sleep", "60"])
    pids = [idle.pid]
    realised = RealisedShare(CoreMeter(lambda role: pids, cores=1))
    realised.sample()
    idle.kill()
    idle.wait()
    while time.process_time() < 0.3:
        sum(range(1000))
    pids[0] = os.getpid()
    realised.sample()
    time.sleep(0.1)
    assert realised.as_allocation()["prefill_percentage"] <= 100


class Workers:
    """Records of two workers, of which some take what they are told."""

    def __init__(self, folder, taking):
        self.folder, self.taking, self.told = folder, taking, []

    def send(self, role, message: TakeSMs):
        self.told.append((role, message.allocation))
        if role in self.taking:
            write(self.folder, role, serial=message.serial)

    def split(self) -> GreenSplit:
        return GreenSplit(
            self.send,
            lambda role: [record_of(self.folder, role)],
            lambda: SMAllocation(50, 50),
        )


def test_a_move_is_done_when_both_workers_have_taken_it(tmp_path):
    workers = Workers(tmp_path, {PREFILL, DECODE})
    workers.split().apply(SMAllocation(70, 30))
    assert workers.told == [(r, SMAllocation(70, 30)) for r in (PREFILL, DECODE)]


def test_a_move_that_one_worker_does_not_take_is_taken_back(tmp_path, monkeypatch):
    monkeypatch.setattr(green_split, "MOVE_TIMEOUT_S", 0.05)
    workers = Workers(tmp_path, {PREFILL})
    with pytest.raises(RotationError, match="share-decode did not take"):
        workers.split().apply(SMAllocation(70, 30))
    assert workers.told[-2:] == [(r, SMAllocation(50, 50)) for r in (PREFILL, DECODE)]
