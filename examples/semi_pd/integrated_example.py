#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The full demonstration, from Python: everything that the coordinator offers.

It starts a server with all parts on, sends requests, moves the split while they run,
and prints what the guide's section on watching tells of: state, split, memory,
latencies, and what the SLO controller made of them.

    python scripts/make_tiny_model.py .demo/tiny-llama
    python examples/semi_pd/integrated_example.py --model-path .demo/tiny-llama

The context manager starts the same processes as the command line does, and they serve
HTTP on ``--host`` and ``--port`` meanwhile.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from chosen_server import usual_dtype
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


def show_metrics(metrics: dict[str, float]) -> None:
    """Print what clients see, over the window."""
    print(
        f"latency: TTFT P95 {metrics.get('ttft_p95_ms', 0):.1f} ms, "
        f"TPOT P95 {metrics.get('tpot_p95_ms', 0):.1f} ms"
    )
    print(
        f"  {metrics.get('request_throughput', 0):.1f} requests/s; waiting: prefill "
        f"{metrics.get('prefill_queue_length', 0):.0f}, decode "
        f"{metrics.get('decode_queue_length', 0):.0f}"
    )


def show_controller(status: dict[str, Any]) -> None:
    """Print the targets and what was decided."""
    targets, counts = status["slo_constraints"], status["statistics"]
    print(
        f"SLO controller ({status['mode']}): TTFT {targets['ttft_target_ms']} ms, TPOT "
        f"{targets['tpot_target_ms']} ms; {counts['decisions']} decisions, "
        f"{counts['adjustments']} of them moved the split"
    )


def main() -> int:
    """Serve eight streams; exit code 0 if all went well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--dtype", default=usual_dtype())
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
    server_args.enable_unified_memory = True
    server_args.enable_slo_aware = True
    server_args.slo_monitoring_interval = 1.0
    port_args = SemiPDPortArgs()
    port_args.host, port_args.port = options.host, options.port

    coordinator = create_semi_pd_coordinator(
        server_args=server_args, port_args=port_args
    )
    with coordinator:
        url = f"http://{options.host}:{options.port}"
        prompts = [f"Question {n}: why is the sky blue?" for n in range(1, 9)]
        with ThreadPoolExecutor(1) as thread:
            running = thread.submit(stream_all, url, prompts, max_new_tokens=64)
            allocation = SMAllocation(prefill_percentage=80, decode_percentage=20)
            moved = coordinator.request_sm_reallocation(allocation)
            show_memory(coordinator.get_unified_memory_usage())
            print(table(running.result()))
        print(f"split moved to 80/20 meanwhile: {moved}")
        status = coordinator.get_status()
        show_status(status)
        show_memory(coordinator.get_unified_memory_usage())
        show_metrics(coordinator.metrics_aggregator.get_aggregated_metrics())
        show_controller(status["slo_controller_status"])
    return 0 if status["is_running"] else 1


if __name__ == "__main__":
    sys.exit(main())
