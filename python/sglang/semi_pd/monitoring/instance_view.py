# SPDX-License-Identifier: Apache-2.0
"""An instance's status as typed values: one reading of it for everything that shows it.

The document is what ``GET /semi_pd/status`` answers. Prometheus, the history and
``semi-pd top`` all read it here, the last one in another process without SGLang.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PERCENTILES = (50, 90, 95, 99)
ROLES = ("prefill", "decode")

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Prefill's and decode's part of the compute, percent."""

    prefill: float
    decode: float

    @classmethod
    def of(cls, document: Document | None) -> Shares | None:
        """Read ``{"prefill_percentage": …, "decode_percentage": …}``."""
        if document is None:
            return None
        return cls(
            prefill=document["prefill_percentage"], decode=document["decode_percentage"]
        )

    def __str__(self) -> str:
        return f"{self.prefill:g}/{self.decode:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """One latency over the window, milliseconds; percentiles are None without samples.

    Attributes:
        percentiles_ms: by percentile, of ``PERCENTILES``.
        judged: the percentile that the SLO is about.
    """

    target_ms: float
    samples: int
    percentiles_ms: Mapping[int, float | None]
    judged: int

    @property
    def judged_ms(self) -> float | None:
        """The percentile that is held against the target."""
        return self.percentiles_ms[self.judged]

    @property
    def is_over_target(self) -> bool:
        """Whether the window breaks the SLO; not so without samples."""
        return self.judged_ms is not None and self.judged_ms > self.target_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A process of the instance. ``name`` is its role and rank: ``prefill_TP0``."""

    name: str
    pid: int
    generation: int
    is_alive: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """What became of requests to move the split, and of workers that died."""

    done: int
    failed: int
    last_failure: str
    generation: int
    worker_deaths: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """The SLO controller: what it decided and why. ``reasons`` counts decisions."""

    is_running: bool
    mode: str
    is_violating: bool
    violation_episodes: int
    decisions: int
    reasons: Mapping[str, int]
    last_reason: str
    last_advice: str
    last_split: Shares | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What goes through the server: per second over the window, and requests now."""

    arrivals_per_s: float
    requests_per_s: float
    tokens_per_s: float
    prefill_queue: int
    decode_queue: int
    waiting: int
    decoding: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """KV blocks by state, of the whole pool; no states before the instance runs."""

    total: int
    total_bytes: int
    by_state: Mapping[str, int]

    @property
    def used(self) -> int:
        """Blocks that are not free."""
        return self.total - self.by_state.get("free", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceView:
    """One instance at one moment."""

    is_running: bool
    partition_backend: str
    workers: tuple[Worker, ...]
    asked: Shares
    realised: Shares | None
    moves: Moves
    ttft: Latency
    tpot: Latency
    load: Load
    blocks: Blocks
    control: Control

    @classmethod
    def from_status(cls, status: Document) -> InstanceView:
        """Read a status document.

        Raises:
            KeyError: it is not a status document of this version.
        """
        rotation = status["process_rotation_status"]
        controller = status["slo_controller_status"]
        metrics = status["metrics"]
        asked = Shares.of(rotation["current_sm_allocation"])
        assert asked is not None
        return cls(
            is_running=status["is_running"],
            partition_backend=status["partition_backend"],
            workers=_workers(status["components"]),
            asked=asked,
            realised=Shares.of(rotation.get("realised_sm_allocation")),
            moves=_moves(rotation, status.get("recovery_status", {})),
            ttft=_latency("ttft", metrics, controller["slo_constraints"]),
            tpot=_latency("tpot", metrics, controller["slo_constraints"]),
            load=_load(metrics),
            blocks=_blocks(status["unified_memory_status"]["memory_usage"]),
            control=_control(controller),
        )


def _workers(components: Document) -> tuple[Worker, ...]:
    return tuple(
        Worker(
            name=name,
            pid=one["pid"],
            generation=one["generation"],
            is_alive=one["is_alive"],
        )
        for name, one in components.items()
    )


def _moves(rotation: Document, recovery: Document) -> Moves:
    return Moves(
        done=rotation["moves"],
        failed=rotation["failed_moves"],
        last_failure=rotation["last_failure"],
        generation=rotation["generation"],
        worker_deaths=recovery.get("worker_deaths", 0),
    )


def _latency(name: str, metrics: Document, constraints: Document) -> Latency:
    samples = metrics[f"{name}_samples"]
    return Latency(
        target_ms=constraints[f"{name}_target_ms"],
        samples=samples,
        percentiles_ms={
            percentile: metrics[f"{name}_p{percentile}_ms"] if samples else None
            for percentile in PERCENTILES
        },
        judged=constraints["percentile"],
    )


def _load(metrics: Document) -> Load:
    return Load(
        arrivals_per_s=metrics["arrival_rate"],
        requests_per_s=metrics["request_throughput"],
        tokens_per_s=metrics["token_throughput"],
        prefill_queue=metrics["prefill_queue_length"],
        decode_queue=metrics["decode_queue_length"],
        waiting=metrics["waiting_requests"],
        decoding=metrics["decoding_requests"],
    )


def _blocks(usage: Document | None) -> Blocks:
    if usage is None:
        return Blocks(total=0, total_bytes=0, by_state={})
    return Blocks(
        total=usage["total_blocks"],
        total_bytes=usage["total_memory_bytes"],
        by_state=usage["blocks_by_state"],
    )


def _control(controller: Document) -> Control:
    last = controller["last_decision"] or {}
    statistics = controller["statistics"]
    return Control(
        is_running=controller["is_running"],
        mode=controller["mode"],
        is_violating=controller["is_violating"],
        violation_episodes=statistics["violation_episodes"],
        decisions=statistics["decisions"],
        reasons=statistics["reasons"],
        last_reason=last.get("reason", ""),
        last_advice=last.get("advice", ""),
        last_split=Shares.of(last.get("sm_allocation")),
    )
