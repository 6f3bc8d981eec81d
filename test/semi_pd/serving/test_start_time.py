# SPDX-License-Identifier: Apache-2.0
"""Two processes more must not double the time to readiness.

Other work on the machine moves these figures, so the limit here is wide;
``benchmark/semi_pd/start_time.py`` measures against the narrow one.
"""

from __future__ import annotations

import pytest
from harness import Server

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("needs_semi_pd")]

WIDE_RATIO = 1.6


def test_ready_time(plain: Server, semi_pd: Server) -> None:
    """Semi-PD is ready almost as soon as plain SGLang."""
    if not plain.ready_s or not semi_pd.ready_s:
        pytest.skip("the servers were started by somebody else")
    for server in (plain, semi_pd):
        print(
            f"{server.name:8s} ready after {server.ready_s:.1f} s, "
            f"{server.ready_cpu_s:.1f} s of processor time"
        )
    assert semi_pd.ready_s <= WIDE_RATIO * plain.ready_s
