# SPDX-License-Identifier: Apache-2.0
"""What prefill does with a request before it computes anything."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.upstream

MOST_QUEUED = 2


class Sent:
    """Stands where answers leave for the main process."""

    def __init__(self) -> None:
        self.aborts: list[Any] = []

    def send_output(self, output: Any, _: Any) -> None:
        self.aborts.append(output)

    @property
    def refused(self) -> list[tuple[str, int]]:
        return [(one.rid, one.finished_reason["status_code"]) for one in self.aborts]


def scheduler_of(**options: Any) -> Any:
    """A prefill scheduler with its queues and nothing to compute with."""
    from sglang.semi_pd.workers.arrivals import Arrivals
    from sglang.semi_pd.workers.prefill_scheduler import PrefillScheduler
    from sglang.semi_pd.workers.ready_queue import ReadyQueue
    from sglang.srt.disaggregation.utils import DisaggregationMode

    queue: Any = ReadyQueue.__new__(ReadyQueue)
    queue.queue, queue.max_total_num_tokens = [], 1000
    made: Any = PrefillScheduler.__new__(PrefillScheduler)
    given = {
        "_arrivals": Arrivals(),
        "abort_on_priority_when_disabled": True,
        "disagg_prefill_bootstrap_queue": queue,
        "disaggregation_mode": DisaggregationMode.PREFILL,
        "enable_hicache_storage": False,
        "enable_hierarchical_cache": False,
        "enable_priority_scheduling": False,
        "ipc_channels": SimpleNamespace(send_to_tokenizer=Sent()),
        "max_queued_requests": MOST_QUEUED,
        "model_config": SimpleNamespace(num_key_value_heads=1),
        "schedule_low_priority_values_first": False,
        "waiting_queue": [],
        **options,
    }
    vars(made).update(given)
    return made


def arrive(scheduler: Any, rid: str, priority: int | None = None) -> None:
    """A request that was sent to this worker and is built now."""
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.sampling.sampling_params import SamplingParams

    req = Req(rid, "", array("q", [1, 2]), SamplingParams(), priority=priority)
    scheduler._add_request_to_queue(req)


def waiting(scheduler: Any) -> list[str]:
    ready = scheduler.disagg_prefill_bootstrap_queue.queue
    return [req.rid for req in [*scheduler.waiting_queue, *ready]]


def test_no_more_wait_than_are_allowed() -> None:
    """The others get 503, as from SGLang alone."""
    scheduler = scheduler_of()
    for rid in "abcd":
        arrive(scheduler, rid)
    assert waiting(scheduler) == ["a", "b"]
    assert scheduler.ipc_channels.send_to_tokenizer.refused == [("c", 503), ("d", 503)]


def test_any_number_waits_without_a_limit() -> None:
    scheduler = scheduler_of(max_queued_requests=None)
    for rid in "abcd":
        arrive(scheduler, rid)
    assert waiting(scheduler) == list("abcd")


def test_what_another_worker_had_is_not_turned_away() -> None:
    scheduler = scheduler_of()
    for rid, output_ids in (("c", []), ("d", [7])):
        request: Any = SimpleNamespace(rid=rid)
        message: Any = SimpleNamespace(request=request, output_ids=output_ids)
        scheduler._arrivals.resume(message)
    for rid in "abcd":
        arrive(scheduler, rid)
    assert waiting(scheduler) == list("abcd")
    assert not scheduler.ipc_channels.send_to_tokenizer.aborts


def test_a_higher_priority_takes_the_place_of_a_lower_one() -> None:
    scheduler = scheduler_of(enable_priority_scheduling=True)
    for rid, priority in (("a", 5), ("b", None), ("c", 1), ("d", None)):
        arrive(scheduler, rid, priority)
    assert waiting(scheduler) == ["a", "c"]
    assert scheduler.ipc_channels.send_to_tokenizer.refused == [("b", 503), ("d", 503)]


def test_a_priority_that_is_not_allowed_is_refused_once() -> None:
    scheduler = scheduler_of()
    arrive(scheduler, "a", priority=1)
    assert not waiting(scheduler)
    assert scheduler.ipc_channels.send_to_tokenizer.refused == [("a", 503)]
