#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How long until a server is ready: Semi-PD against plain SGLang.

Starts each server for real, in turn, ``--rounds`` times, and prints the wall and the
processor time until ``/health`` answers 200. Exit code 1 if the ratio of the best wall
times is over ``--limit``.

    python benchmark/semi_pd/start_time.py
    python benchmark/semi_pd/start_time.py --flags=--enable-semi-pd-coordinator
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

_TESTS = Path(__file__).parents[2] / "test" / "semi_pd"
sys.path[:0] = [str(_TESTS), str(_TESTS / "serving")]

from harness import COMMON_FLAGS, Server  # noqa: E402
from tiny_models import make_tiny_model  # noqa: E402

Figures = tuple[float, float]
"""Wall and processor seconds."""


def measure(name: str, model: Path, flags: Sequence[str]) -> Figures:
    """Start one server, note when it is ready, stop it."""
    server = Server(
        name=name,
        model=model,
        flags=[*COMMON_FLAGS, *flags],
        environment={},  # not that of the tests: as a user starts it
    )
    try:
        server.start().wait_ready()
        server.stop()
    finally:
        server.clean()
    print(
        f"{name:8s} {server.ready_s:7.1f} s wall {server.ready_cpu_s:7.1f} s processor"
    )
    return server.ready_s, server.ready_cpu_s


def best(measured: Sequence[Figures]) -> Figures:
    """The least disturbed figures."""
    return min(wall for wall, _ in measured), min(cpu for _, cpu in measured)


def compare(options: argparse.Namespace, model: Path) -> float:
    """Ratio of the wall times, Semi-PD to plain."""
    plain, semi_pd = [], []
    for _ in range(options.rounds):
        plain.append(measure("plain", model, []))
        semi_pd.append(measure("semi-pd", model, shlex.split(options.flags)))
    (plain_wall, plain_cpu), (wall, cpu) = best(plain), best(semi_pd)
    print(
        f"best of {options.rounds} on {os.cpu_count()} cores: "
        f"plain {plain_wall:.1f} s, Semi-PD {wall:.1f} s, "
        f"ratio {wall / plain_wall:.2f} "
        f"(processor time {cpu / plain_cpu:.2f})"
    )
    return wall / plain_wall


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1, help="default: 1")
    parser.add_argument("--limit", type=float, default=1.3, help="default: 1.3")
    parser.add_argument("--flags", default="--enable-semi-pd", help="of Semi-PD")
    parser.add_argument("--model", type=Path, help="default: the tiny model")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or make_tiny_model(Path(folder) / "tiny-llama")
        return 0 if compare(options, model) <= options.limit else 1


if __name__ == "__main__":
    sys.exit(main())
