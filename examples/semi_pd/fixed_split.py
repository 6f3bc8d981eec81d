#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A server whose split is fixed at the start: 60 % for prefill, 40 % for decode.

    python scripts/make_tiny_model.py .demo/tiny-llama
    python examples/semi_pd/fixed_split.py --model-path .demo/tiny-llama

Without a GPU the shares are shares of the CPU's cores, at least one core each.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from server_process import ServerProcess
from streaming import stream_all, table

PREFILL_PERCENT, DECODE_PERCENT = 60, 40
PROMPTS = [f"Question {n}: why is the sky blue?" for n in range(1, 5)]


def main() -> int:
    """Serve four streams under the split and show that it is in force."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-path", type=Path, required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--log", type=Path, default=Path(".demo/fixed_split.log"))
    options = parser.parse_args()
    flags = [
        "--enable-semi-pd",
        f"--initial-prefill-sm={PREFILL_PERCENT}",
        f"--initial-decode-sm={DECODE_PERCENT}",
        f"--dtype={options.dtype}",
    ]
    with ServerProcess(options.model_path, flags, log=options.log) as server:
        print(server.command)
        print(f"ready after {server.wait_ready():.1f} s")
        print(table(stream_all(server.url, PROMPTS, max_new_tokens=16)))
        status = server.get("/semi_pd/status")
        split = status["process_rotation_status"]["current_sm_allocation"]
        print(f"split: {split}")
        for name, one in sorted(status["components"].items()):
            cores = sorted(os.sched_getaffinity(one["pid"]))
            print(f"{name:14s} pid {one['pid']:7d}  cores {cores}")
        code = server.stop()
    is_right = split["prefill_percentage"] == PREFILL_PERCENT
    return 0 if is_right and code == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
