#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How long do handovers take without load?

Starts each system in turn and sends it prompts one after the other. When a decode
worker ends it says in its log what its handovers took, part by part
(``sglang.semi_pd.workers.handover_times``); that line is printed.

    python benchmark/semi_pd/handovers.py --out /tmp/handovers --model-path $MODEL \\
        --systems semi-pd-mps-100-100 semi-pd-green-100-100 \\
        -- --load-format dummy --skip-tokenizer-init --attention-backend fa3
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import urllib.request
from pathlib import Path

from systems import NotReadyError, RunningServer, end_tidily, named, own_and_servers

LENGTHS = (64, 256, 1024)
ANSWER = 8
TIMEOUT_S = 120.0
SAID = "Handovers took, "


def ask_in_turn(url: str, options: argparse.Namespace) -> None:
    """Send the prompts, each when the one before has been answered."""
    source = random.Random(options.seed)
    for _ in range(options.requests):
        prompt = source.choices(range(10, options.vocabulary), k=source.choice(LENGTHS))
        how = {"temperature": 0, "max_new_tokens": ANSWER, "ignore_eos": True}
        data = json.dumps({"input_ids": prompt, "sampling_params": how}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{url}/generate", data, headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            answer.read()


def measure(options: argparse.Namespace, name: str) -> str:
    """What the decode worker of one system said when it ended."""
    server = RunningServer(named(name), options.common, options.port, options.out)
    server.start(options.start_timeout)
    try:
        ask_in_turn(server.url, options)
    finally:
        server.stop()
    log = (options.out / f"{name}.log").read_text(encoding="utf-8", errors="replace")
    said = [line for line in log.splitlines() if SAID in line]
    if len(said) != 1:
        raise RuntimeError(f"{len(said)} decode workers ended; see its log")
    return said[0].partition(SAID)[2]


def main() -> int:
    own, flags = own_and_servers(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="for the logs")
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--systems", nargs="+", required=True)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--vocabulary", type=int, default=100_000, help="ids below it")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--port", type=int, default=31600)
    parser.add_argument("--start-timeout", type=float, default=200.0)
    options = parser.parse_args(own)
    options.common = ["--model-path", options.model_path, *flags]
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    end_tidily()
    failed = 0
    for name in options.systems:
        try:
            print(f"{name}: {measure(options, name)}", flush=True)
        except (NotReadyError, OSError, RuntimeError) as error:
            failed += 1
            print(f"{name}: {error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
