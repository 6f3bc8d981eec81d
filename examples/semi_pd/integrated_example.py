#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The coordinator from Python: start, serve, move the split, look inside, stop.

    python scripts/make_tiny_model.py .demo/tiny-llama
    python examples/semi_pd/integrated_example.py --model-path .demo/tiny-llama

The context manager starts the same processes as the command line does, and they serve
HTTP on ``--host`` and ``--port`` meanwhile.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from streaming import stream_all, table


def show_status(status: dict[str, Any]) -> None:
    """Print what ``get_status`` tells."""
    print(f"running: {status['is_running']}")
    for name, one in sorted(status["components"].items()):
        state = "alive" if one["is_alive"] else "dead"
        print(f"  {name:14s} pid {one['pid']}, generation {one['generation']}, {state}")
    rotation = status["process_rotation_status"]
    print(f"split: {rotation['current_sm_allocation']}")


def show_memory(usage: dict[str, Any] | None) -> None:
    """Print how full the KV cache is, and has been."""
    if usage is None:
        print("memory: not known yet")
        return
    total_mib = usage["total_memory_bytes"] / 2**20
    print(f"memory: {total_mib:.1f} MiB, {usage['utilization_ratio']:.1%} in use")
    print(f"  peak {usage['peak_blocks']} of {usage['total_blocks']} blocks")


def main() -> int:
    """Serve four streams; exit code 0 if all went well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=30000)
    options = parser.parse_args()

    # SGLang's imports take tens of seconds: after the command line was understood.
    from sglang.semi_pd.process_rotation_manager import SMAllocation
    from sglang.semi_pd.semi_pd_coordinator import create_semi_pd_coordinator
    from sglang.srt.server_args import SemiPDPortArgs, ServerArgs

    server_args = ServerArgs()
    server_args.model_path = options.model_path
    server_args.dtype = options.dtype
    server_args.enable_semi_pd_coordinator = True
    port_args = SemiPDPortArgs()
    port_args.host, port_args.port = options.host, options.port

    coordinator = create_semi_pd_coordinator(
        server_args=server_args, port_args=port_args
    )
    with coordinator:
        url = f"http://{options.host}:{options.port}"
        prompts = [f"Question {n}: why is the sky blue?" for n in range(1, 5)]
        print(table(stream_all(url, prompts, max_new_tokens=16)))
        moved = coordinator.request_sm_reallocation(SMAllocation(40, 60))
        print(f"split moved to 40/60: {moved}")  # False on a GPU in this version
        status = coordinator.get_status()
        show_status(status)
        show_memory(coordinator.get_unified_memory_usage())
    return 0 if status["is_running"] else 1


if __name__ == "__main__":
    sys.exit(main())
