# SPDX-License-Identifier: Apache-2.0
"""Which parts move an instance's split, and measure what came of it.

Both depend on the device and on the backend that divides it, and on nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglang.semi_pd.partition.cpu_share import CoreSplit
from sglang.semi_pd.partition.fixed_split import FixedSplit
from sglang.semi_pd.partition.green_split import GreenSplit
from sglang.semi_pd.partition.realised_share import (
    CoreMeter,
    ProbeMeter,
    ShareMeter,
)
from sglang.semi_pd.server.rotation import Rotation, SplitByRotation
from sglang.semi_pd.utils import InstanceRole

if TYPE_CHECKING:
    from sglang.semi_pd.config import SemiPDConfig
    from sglang.semi_pd.partition.sm_partition import SMPartition
    from sglang.semi_pd.process_rotation_manager import SplitMechanism
    from sglang.semi_pd.sm_allocation import SMAllocation
    from sglang.srt.server_args import ServerArgs


@dataclass(frozen=True, slots=True)
class WorkerReach:
    """How the workers are reached that serve at that moment; none before the start.

    Attributes:
        send: delivers a message to every rank of a role.
        pids: process ids of a role, by rank.
        share_paths: where the ranks of a role report their share.
        rotate: brings a new pair with this split into service.
    """

    send: Callable[[InstanceRole, Any], None]
    pids: Callable[[InstanceRole], list[int]]
    share_paths: Callable[[InstanceRole], list[Path]]
    rotate: Callable[[SMAllocation], Future[Rotation]]


def split_mechanism(
    partition: SMPartition,
    config: SemiPDConfig,
    device: str,
    reach: WorkerReach,
    current: Callable[[], SMAllocation],
) -> SplitMechanism:
    """What moves the split; ``current`` says which one is in force."""
    if partition.name == "none":
        return FixedSplit("nothing is divided", "use another partition backend")
    if partition.name == "mps":
        # To know them takes a trial, which a split that the user chose did without.
        is_known = config.moves_split or config.split_is_free
        offers: tuple[SMAllocation, ...] = ()
        if is_known:
            offers = partition.offered_splits(
                current(), allow_overlap=config.overlap_allowed
            )
        return SplitByRotation(reach.rotate, offers)
    if device == "cpu":
        return CoreSplit(reach.send, reach.pids, current)
    return GreenSplit(reach.send, reach.share_paths, current)


def share_meter(server_args: ServerArgs, reach: WorkerReach) -> ShareMeter:
    """What measures the share that each role really had."""
    if server_args.device == "cpu":
        return CoreMeter(reach.pids, len(os.sched_getaffinity(0)))
    gpu = server_args.base_gpu_id
    return ProbeMeter(reach.share_paths, lambda: _sms_of_device(gpu))


def _sms_of_device(gpu: int) -> int:
    import torch

    return torch.cuda.get_device_properties(gpu).multi_processor_count
