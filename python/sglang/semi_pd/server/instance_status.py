# SPDX-License-Identifier: Apache-2.0
"""The state of an instance as plain values: the document behind every view of it.

Read off the coordinator's parts, of which some exist only while it serves.
``monitoring.instance_view`` gives the same as types.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from sglang.semi_pd.monitoring.instance_view import InstanceView

if TYPE_CHECKING:
    from sglang.semi_pd.semi_pd_coordinator import SemiPDCoordinator
    from sglang.semi_pd.server.supervisor import Supervisor
    from sglang.semi_pd.server.worker import Worker


def describe(coordinator: SemiPDCoordinator) -> dict[str, Any]:
    """Everything an operator may ask."""
    realised, group = coordinator.realised, coordinator.group
    standby = group.standby if group else None
    usage = coordinator.get_unified_memory_usage()
    return {
        "is_running": coordinator.is_running,
        "readiness": coordinator.readiness.as_status(),
        "components": _components(group.serving if group else ()),
        "standbys": _components(standby.workers if standby else ()),
        "partition_backend": coordinator.partition.name,
        "realised_sm_share": realised.get_status() if realised else None,
        "process_rotation_status": {
            **coordinator.rotation.get_status(),
            "realised_sm_allocation": realised and realised.as_allocation(),
            "generation": group.pair.generation if group else 0,
        },
        "recovery_status": _recovery(coordinator.supervisor),
        "unified_memory_status": {"memory_usage": usage},
        "slo_controller_status": coordinator.slo.get_status(),
        "metrics": coordinator.metrics_aggregator.get_aggregated_metrics(),
    }


def observe(coordinator: SemiPDCoordinator) -> InstanceView:
    """For the history; brings in what the workers say of their queues."""
    loads = coordinator.loads
    for role, length in (loads.queue_lengths() if loads else {}).items():
        coordinator.metrics_aggregator.set_worker_metrics(
            role, {"queue_length": length}
        )
    return InstanceView.from_status(describe(coordinator))


def _components(workers: Iterable[Worker]) -> dict[str, Any]:
    return {
        f"{worker.spec.role.value}_TP{worker.spec.tp_rank}": {
            "pid": worker.pid,
            "generation": worker.spec.generation,
            "is_alive": not worker.has_ended,
        }
        for worker in workers
    }


def _recovery(supervisor: Supervisor | None) -> dict[str, Any]:
    if supervisor is None:
        return {"is_recovering": False, "worker_deaths": 0}
    return {
        "is_recovering": supervisor.recovery.is_under_way,
        "worker_deaths": supervisor.recovery.deaths,
        "last_death": supervisor.recovery.last_death,
        "last_death_at": supervisor.recovery.last_death_at,
        "last_recovery_s": supervisor.recovery.last_took_s,
    }
