#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A server whose split moves on request only: 60 % for prefill, 40 % for decode.

    python scripts/make_tiny_model.py .demo/tiny-llama
    python examples/semi_pd/fixed_split.py --model-path .demo/tiny-llama

With --url it looks at a server that was started with these flags. Without a GPU the
shares are shares of the CPU's cores, at least one core each. Exit code 0 means that the
split is in force.
"""

from __future__ import annotations

import os
import sys

from chosen_server import parser, serve
from streaming import stream_all, table

SPLIT = {"prefill_percentage": 60, "decode_percentage": 40}
FLAGS = (
    "--enable-semi-pd",
    f"--initial-prefill-sm={SPLIT['prefill_percentage']}",
    f"--initial-decode-sm={SPLIT['decode_percentage']}",
)
PROMPTS = [f"Question {n}: why is the sky blue?" for n in range(1, 5)]


def main() -> int:
    """Serve four streams under the split and show that it is in force."""
    options = parser(__doc__, "fixed_split").parse_args()
    with serve(options, FLAGS) as server:
        print(table(stream_all(server.url, PROMPTS, max_new_tokens=16)))
        status = server.status()
        split = status["process_rotation_status"]["current_sm_allocation"]
        print(f"split: {split}")
        for name, one in sorted(status["components"].items()):
            cores = sorted(os.sched_getaffinity(one["pid"]))
            print(f"{name:14s} pid {one['pid']:7d}  cores {cores}")
    return 0 if split == SPLIT else 1


if __name__ == "__main__":
    sys.exit(main())
