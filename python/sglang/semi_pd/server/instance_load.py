# SPDX-License-Identifier: Apache-2.0
"""The load of an instance, as SGLang tells that of its one scheduler.

Each worker publishes its load in a file of its own; ``/v1/loads`` and whoever balances
by it want one figure for both. SGLang's types and transport are used as they are.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import msgspec
from sglang.semi_pd.utils import InstanceRole
from sglang.srt.managers.load_snapshot import (
    DisaggregationMetrics,
    LoadSnapshot,
    MemoryMetrics,
    QueueMetrics,
    ShmLoadSnapshotReader,
)

SILENCE_S = float(os.environ.get("SGLANG_HEALTH_CHECK_TIMEOUT", 20))
"""A worker that reported nothing for so long does not work: upstream's own limit."""

_ADDED = (
    "num_running_reqs",
    "num_waiting_reqs",
    "num_waiting_uncached_tokens",
    "total_prefill_uncached_tokens",
    "total_prefill_busy_us",
)
_OF_THE_POOL = ("num_used_tokens", "max_total_num_tokens", "token_usage")


def of_instance(prefill: LoadSnapshot, decode: LoadSnapshot) -> LoadSnapshot:
    """What both workers have to do, counted once.

    Queues and requests add up. KV memory is shared: each worker reports the use of the
    whole pool, and the newer figure holds. Rates are those of the worker that does the
    work. The time stamp is the older one: a load is as old as its oldest part.
    """
    newer = max(prefill, decode, key=lambda load: load.timestamp)
    waiting_tokens = sum(
        load.num_total_tokens - load.num_used_tokens for load in (prefill, decode)
    )
    total = newer.num_used_tokens + waiting_tokens
    return msgspec.structs.replace(
        decode,
        timestamp=min(prefill.timestamp, decode.timestamp),
        num_total_tokens=total,
        num_active_tokens=total,
        cache_hit_rate=prefill.cache_hit_rate,
        memory=_memory(prefill.memory, decode.memory),
        disaggregation=_stages(prefill.disaggregation, decode.disaggregation),
        queues=_queues(prefill.queues, decode.queues),
        **{name: getattr(newer, name) for name in _OF_THE_POOL},
        **{name: getattr(prefill, name) + getattr(decode, name) for name in _ADDED},
    )


def _memory(
    prefill: MemoryMetrics | None, decode: MemoryMetrics | None
) -> MemoryMetrics | None:
    """One copy of the weights and one pool; each worker has its own graphs."""
    if prefill is None or decode is None:
        return decode
    graphs = prefill.graph_gb + decode.graph_gb
    return msgspec.structs.replace(decode, graph_gb=round(graphs, 3))


def _stages(
    prefill: DisaggregationMetrics | None, decode: DisaggregationMetrics | None
) -> DisaggregationMetrics | None:
    """From outside this is no disaggregated server; its stages are told all the same.

    A balancer that reads ``prefill`` or ``decode`` would take it for half a pair.
    """
    if prefill is None or decode is None:
        return None
    return msgspec.structs.replace(
        decode,
        mode="null",
        prefill_bootstrap_queue_reqs=prefill.prefill_bootstrap_queue_reqs,
        prefill_inflight_queue_reqs=prefill.prefill_inflight_queue_reqs,
    )


def _queues(
    prefill: QueueMetrics | None, decode: QueueMetrics | None
) -> QueueMetrics | None:
    if prefill is None or decode is None:
        return decode or prefill
    names = QueueMetrics.__struct_fields__
    return QueueMetrics(*(getattr(prefill, n) + getattr(decode, n) for n in names))


class InstanceLoadReader:
    """What SGLang's load reader is to its TokenizerManager, over both workers' files.

    Args:
        path_of: the file in which the worker of a role publishes its load.
    """

    def __init__(self, path_of: Callable[[InstanceRole], str]) -> None:
        self._readers = {
            role: ShmLoadSnapshotReader(path_of(role), dp_size=1)
            for role in InstanceRole
            if role.is_worker
        }

    def read(self, dp_rank: int) -> LoadSnapshot | None:
        """The load of the instance, None before both workers have told theirs."""
        prefill, decode = (reader.read(dp_rank) for reader in self._readers.values())
        return of_instance(prefill, decode) if prefill and decode else None

    def read_all(self) -> list[LoadSnapshot]:
        """As ``read``, for the one data-parallel rank there is."""
        load = self.read(0)
        return [] if load is None else [load]

    def silence(self) -> str | None:
        """One line on the worker that has not reported for too long, if there is one.

        A health check sees any answer of any worker; this sees the other one.
        """
        for role, reader in self._readers.items():
            load = reader.read(0)
            quiet_s = time.time() - load.timestamp if load and load.timestamp else 0.0
            if quiet_s > SILENCE_S:
                return f"the {role.value} worker has not reported for {quiet_s:.0f} s"
        return None

    def queue_lengths(self) -> dict[InstanceRole, int]:
        """Requests that wait for each worker; without one that has gone silent."""
        loads = {role: reader.read(0) for role, reader in self._readers.items()}
        return {
            role: load.num_waiting_reqs
            for role, load in loads.items()
            if load and time.time() - load.timestamp <= SILENCE_S
        }

    def close(self) -> None:
        """Unmap the files."""
        for reader in self._readers.values():
            reader.close()
