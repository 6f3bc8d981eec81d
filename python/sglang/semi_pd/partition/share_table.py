# SPDX-License-Identifier: Apache-2.0
"""What a split became on this GPU: requested percentages, and the SMs they came to.

Green contexts round a share to the nearest whole units; MPS rounds it down, on an H200
to whole pairs of SMs. So the SMs are those that the workers found, not computed here.
"""

from __future__ import annotations

from collections.abc import Mapping

from sglang.semi_pd.sm_allocation import SMAllocation
from sglang.semi_pd.utils import InstanceRole

HEADER = "share requested -> SMs (rounded)"


def table(asked: SMAllocation, sms: Mapping[InstanceRole, int], total: int) -> str:
    """A header, then a line for each role.

    Args:
        sms: SMs that a worker of the role may use.
        total: SMs of the GPU.
    """
    lines = [HEADER]
    for role, count in sms.items():
        share = 100 * count / total
        lines.append(
            f"  {role.value:8s}{asked.percentage_of(role):3d} % -> "
            f"{count:3d} of {total} ({share:.1f} %)"
        )
    return "\n".join(lines)
