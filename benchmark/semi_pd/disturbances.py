# SPDX-License-Identifier: Apache-2.0
"""What clients notice of rotations and deaths of workers: gaps, seconds, tokens.

Against a server that runs with Semi-PD on this machine (a kill needs its processes):

    python benchmark/semi_pd/disturbances.py --port 30000 --rotate 90/10 50/50 --times 4
    python benchmark/semi_pd/disturbances.py --port 30000 --kill decode --times 4
    python benchmark/semi_pd/disturbances.py --port 30000 --fault prefill --times 4

``--fault`` needs a server with ``fault_plugin`` on its ``PYTHONPATH`` and the same
``FAULT_DIRECTORY`` in its environment as this program.

Workers are struck while they serve. Exit code 1 if a stream's tokens changed. A seed
makes prompts and moments repeatable.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "test" / "semi_pd" / "serving"))

import disturb  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--rotate", nargs="+", metavar="PREFILL/DECODE", default=[])
    parser.add_argument("--kill", nargs="+", choices=("prefill", "decode"), default=[])
    parser.add_argument("--fault", nargs="+", choices=("prefill", "decode"), default=[])
    parser.add_argument("--times", type=int, default=4)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if sum(map(bool, (options.rotate, options.kill, options.fault))) != 1:
        parser.error("give one of --rotate, --kill and --fault")
    outcome = disturb.run(
        f"http://127.0.0.1:{options.port}",
        disturbance(options),
        times=options.times,
        streams=options.streams,
        tokens=options.tokens,
        seed=options.seed,
        only_busy=True,
    )
    text = json.dumps(dataclasses.asdict(outcome), indent=1)
    print(text)
    if options.out:
        options.out.write_text(text)
    return 1 if outcome.changed else 0


def disturbance(options: argparse.Namespace) -> disturb.Disturb:
    """What was asked for."""
    if options.kill:
        return disturb.killing(*options.kill)
    if options.fault:
        directory = Path(os.environ["FAULT_DIRECTORY"])
        return disturb.faulting(*options.fault, directory=directory)
    splits = [tuple(int(p) for p in split.split("/")) for split in options.rotate]
    return disturb.rotating(*splits)


if __name__ == "__main__":
    sys.exit(main())
