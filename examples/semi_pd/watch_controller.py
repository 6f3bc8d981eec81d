#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Watch the SLO controller judge a load and move the split, or say why it does not.

    python scripts/make_tiny_model.py .demo/tiny-llama
    python examples/semi_pd/watch_controller.py --model-path .demo/tiny-llama

The targets are ones that this host cannot meet with a queue of long prompts, so there
is something to see. Each line is one look: the window's percentiles, the split, and the
last decision with its reason. With --url it sends the same load to a server that runs
already, with --enable-semi-pd-coordinator and targets of its own.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from chosen_server import parser, serve
from streaming import stream_all

INTERVAL_S = 1.0
LOOKS = 6
FLAGS = (
    "--enable-semi-pd-coordinator",
    "--slo-ttft-target=20",
    "--slo-tpot-target=500",
    "--slo-window-size=5",
    f"--slo-monitoring-interval={INTERVAL_S}",
)
SENTENCE = "A long prompt makes everybody else wait, and the even pace is lost. "
PROMPTS = [f"Text {n}: {SENTENCE * 20}" for n in range(1, 13)]


def line(status: dict[str, Any]) -> str:
    """What the controller sees and last did."""
    split = status["process_rotation_status"]["current_sm_allocation"]
    metrics = status["metrics"]
    decision = status["slo_controller_status"]["last_decision"] or {}
    return (
        f"TTFT P95 {metrics.get('ttft_p95_ms', 0):7.1f} ms, "
        f"TPOT P95 {metrics.get('tpot_p95_ms', 0):6.1f} ms, "
        f"split {split['prefill_percentage']}/{split['decode_percentage']}, "
        f"last decision: {decision.get('reason', 'none yet')}"
    )


def main() -> int:
    """Exit code 0 if the controller saw the targets missed."""
    options = parser(__doc__, "watch_controller").parse_args()
    with serve(options, FLAGS) as server:
        for _ in range(LOOKS):
            stream_all(server.url, PROMPTS, max_new_tokens=16)
            time.sleep(INTERVAL_S)
            status = server.status()
            print(line(status), flush=True)
        controller = status["slo_controller_status"]
        print(f"mode {controller['mode']}: {controller['statistics']}")
    return 0 if controller["statistics"]["violation_episodes"] else 1


if __name__ == "__main__":
    sys.exit(main())
