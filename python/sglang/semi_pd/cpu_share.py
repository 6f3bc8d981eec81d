# SPDX-License-Identifier: Apache-2.0
"""On a machine without a GPU, a worker's share of it: its cores and its threads."""

from __future__ import annotations

import os
from collections.abc import Sequence

from sglang.semi_pd.sm_allocation import SMAllocation
from sglang.semi_pd.utils import InstanceRole


def cores_for(
    role: InstanceRole, allocation: SMAllocation, cores: Sequence[int] | None = None
) -> frozenset[int]:
    """The cores a process of ``role`` may use.

    Prefill counts from the first core, decode from the last, so that shares that sum to
    no more than 100 overlap only when rounding or a single core makes them. Every role
    gets a core at least; the resident, which computes nothing, is not confined.

    Args:
        cores: those to divide; by default those this process may run on.
    """
    available = sorted(os.sched_getaffinity(0)) if cores is None else sorted(cores)
    if not role.is_worker:
        return frozenset(available)
    share = allocation.percentage_of(role) / 100
    count = min(len(available), max(1, round(share * len(available))))
    is_prefill = role is InstanceRole.PREFILL
    return frozenset(available[:count] if is_prefill else available[-count:])
