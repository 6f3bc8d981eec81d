# SPDX-License-Identifier: Apache-2.0
"""Can this GPU be divided by green contexts, and does every part of it compute right?

A program of its own, run once before ``auto`` decides: it must be an MPS client, as the
workers will be, and what it finds wrong must not be in the way of another choice.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

from sglang.semi_pd.errors import SemiPDError

MODULE = "sglang.semi_pd.partition.green_check"
TIMEOUT_S = 180.0


def why_not(environment: Mapping[str, str], gpu: int) -> str:
    """Run the check as a process with this environment; why it failed, or nothing."""
    command = [sys.executable, "-m", MODULE, str(gpu)]
    try:
        done = subprocess.run(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"the check of green contexts did not end within {TIMEOUT_S:.0f} s"
    lines = done.stderr.strip().splitlines()
    if done.returncode == 0:
        return ""
    return lines[-1] if lines else f"the check ended with {done.returncode}"


def check(gpu: int) -> None:
    """Compute products on every stream that a worker may be given.

    Raises:
        GreenContextError: the device cannot be split.
        NumericsError: some part of it computes wrong.
    """
    import torch
    from sglang.semi_pd.partition.green_context import GreenDevice
    from sglang.semi_pd.utils import InstanceRole
    from sglang.semi_pd.workers.numerics_gate import NumericsGate

    device = torch.device("cuda", gpu)
    torch.cuda.set_device(device)
    torch.cuda.synchronize()
    gate, green = NumericsGate(device), GreenDevice(device)
    for role in (InstanceRole.PREFILL, InstanceRole.DECODE):
        for units in green.units.ranges(role):
            gate.check(f"{green.units.count(units)} SMs", green.stream(units))


def main() -> int:
    """Exit code 0, or 1 and the reason in one line."""
    try:
        check(int(sys.argv[1]))
    except SemiPDError as error:
        print(f"{error.what}: {error.why}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
