# SPDX-License-Identifier: Apache-2.0
"""Green contexts on a real GPU: which SMs, are products right, what a move costs."""

from __future__ import annotations

import random
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.semi_pd.partition.green_context import SMS_PER_UNIT, GreenDevice
from sglang.semi_pd.partition.sm_probe import SMProbe
from sglang.semi_pd.partition.sm_ranges import SMRange
from sglang.semi_pd.sm_allocation import SMAllocation
from sglang.semi_pd.utils import InstanceRole
from sglang.semi_pd.workers.green_forward import GreenForward
from sglang.semi_pd.workers.numerics_gate import NumericsGate
from sglang.semi_pd.workers.share_watch import PROBE_INTERVAL_S, ShareWatch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

ROLES = (InstanceRole.PREFILL, InstanceRole.DECODE)
MOVES = 1000
MOST_CPU_US = 100.0


@pytest.fixture(scope="module")
def device() -> torch.device:
    torch.cuda.set_device(0)
    torch.cuda.synchronize()
    return torch.device("cuda", 0)


@pytest.fixture(scope="module")
def green(device: torch.device) -> GreenDevice:
    return GreenDevice(device)


@pytest.fixture(scope="module")
def probe(device: torch.device) -> SMProbe:
    return SMProbe(device)


def test_units_are_the_whole_device_and_the_same_each_time(device, green):
    count = torch.cuda.get_device_properties(device).multi_processor_count
    assert green.units.total == count
    assert min(green.units.sizes) >= SMS_PER_UNIT
    assert GreenDevice(device).units == green.units


@pytest.mark.parametrize("role", ROLES)
def test_a_stream_runs_on_as_many_sms_as_it_was_given(green, probe, role):
    for units in green.units.ranges(role):
        seen = probe.ask_and_wait(green.stream(units))
        assert len(seen) == green.units.count(units), units


@pytest.mark.parametrize("percentage", range(5, 100, 5))
def test_the_probe_agrees_with_the_asked_share_within_one_unit(
    green, probe, percentage
):
    split = SMAllocation(percentage, 100 - percentage)
    counts = []
    for role in ROLES:
        stream = green.stream(green.units.range_of(role, split))
        counts.append(len(probe.ask_and_wait(stream)))
        asked = green.units.total * split.percentage_of(role) / 100
        assert abs(counts[-1] - asked) <= max(green.units.sizes)
    assert sum(counts) == green.units.total


@pytest.mark.parametrize("role", ROLES)
def test_products_are_right_on_every_run_of_units(device, green, role):
    gate = NumericsGate(device)
    for units in green.units.ranges(role):
        gate.check(f"{green.units.count(units)} SMs", green.stream(units))


def test_a_graph_keeps_to_the_sms_it_was_captured_on(device, green):
    a = torch.randn(4096, 4096, device=device).bfloat16()
    out = torch.empty_like(a)
    few = green.stream(SMRange(0, 2))
    many = green.stream(SMRange(0, len(green.units.sizes)))

    def captured_on(stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            torch.mm(a, a, out=out)
            torch.cuda.synchronize()
            with torch.cuda.graph(graph, stream=stream):
                torch.mm(a, a, out=out)
        return graph

    def ms(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(stream):
            graph.replay()
            begin.record()
            for _ in range(5):
                graph.replay()
            end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 5

    slow, fast = captured_on(few), captured_on(many)
    assert ms(slow, many) > 3 * ms(fast, few)


def worker(role: InstanceRole, device: torch.device) -> tuple[GreenForward, Any]:
    """What a worker has of green contexts, without a model."""
    split = SMAllocation(50, 50)
    spec: Any = SimpleNamespace(role=role, split=split, device=str(device))
    scheduler: Any = SimpleNamespace(
        enable_overlap=True,
        forward_stream=torch.cuda.Stream(),
        tp_worker=SimpleNamespace(model_runner=SimpleNamespace()),
        token_to_kv_pool_allocator=SimpleNamespace(),
    )
    green = GreenForward(spec)
    green.attach(scheduler)
    return green, scheduler


def test_a_thousand_moves_under_load_change_nothing(device):
    """A chain of products, each needing the one before it, over changing streams."""
    green, scheduler = worker(InstanceRole.DECODE, device)
    generator = torch.Generator(device).manual_seed(0)
    weights = [
        torch.randn(4096, 4096, generator=generator, device=device).bfloat16()
        for _ in range(4)
    ]
    first = torch.randn(64, 4096, generator=generator, device=device).bfloat16()
    splits = [SMAllocation(p, 100 - p) for p in range(10, 95, 5)]

    def run(*, moves: bool) -> tuple[torch.Tensor, list[float]]:
        source, x, cpu_us = random.Random(0), first, []
        for step in range(MOVES):
            if moves:
                cpu_us.append(green.take(scheduler, source.choice(splits)))
            with scheduler.forward_stream_ctx:
                for weight in weights:
                    x = torch.nn.functional.rms_norm(x @ weight, (4096,))
            if step % 50 == 0:
                torch.cuda.synchronize()
        torch.cuda.synchronize()
        return x, cpu_us

    unmoved, _ = run(moves=False)
    moved, cpu_us = run(moves=True)
    assert torch.equal(moved, unmoved)
    cpu_us.sort()
    print(f"CPU us: P50 {cpu_us[500]:.1f} P99 {cpu_us[990]:.1f} max {cpu_us[-1]:.1f}")
    assert cpu_us[990] <= MOST_CPU_US


def test_the_watch_reports_the_realised_share(device, tmp_path):
    green, scheduler = worker(InstanceRole.PREFILL, device)
    watch = ShareWatch(device, tmp_path / "share", green.sms)
    from sglang.semi_pd.partition.share_record import ShareRecord

    record = ShareRecord(tmp_path / "share")
    forwards = 0
    for serial, percentage in enumerate((30, 70), 1):
        cpu_us = green.take(scheduler, SMAllocation(percentage, 100 - percentage))
        watch.note_split(serial, green.sms, cpu_us)
        before = record.read()
        assert before.serial == serial
        until = time.monotonic() + 10 * PROBE_INTERVAL_S
        while time.monotonic() < until:
            forwards += 1
            watch.look(scheduler.forward_stream, forwards)
            time.sleep(0.002)
        after = record.read()
        seconds = after.seconds - before.seconds
        assert seconds > 5 * PROBE_INTERVAL_S
        mean = (after.sm_seconds - before.sm_seconds) / seconds
        assert mean == pytest.approx(green.sms, rel=0.15), "one probe is of the old SMs"
