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
import sys

from steady import Steady
from systems import RunningServer, look_at_each

LENGTHS = (64, 256, 1024)
ANSWER = 8
SAID = "Handovers took, "


def look(options: argparse.Namespace, server: RunningServer) -> None:
    """Print what the decode worker of one system says when it ends."""
    steady = Steady(server.url, vocabulary=options.vocabulary, seed=options.seed)
    steady.answer_in_turn(LENGTHS, options.requests, ANSWER)
    server.stop()
    name = server.system.name
    log = (options.out / f"{name}.log").read_text(encoding="utf-8", errors="replace")
    said = [line for line in log.splitlines() if SAID in line]
    if len(said) != 1:
        raise RuntimeError(f"{len(said)} decode workers ended; see its log")
    print(f"{name}: {said[0].partition(SAID)[2]}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--vocabulary", type=int, default=100_000, help="ids below it")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--port", type=int, default=31600)
    return look_at_each(parser, look)


if __name__ == "__main__":
    sys.exit(main())
