#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Restart every instance of a running fleet, one after the other.

    python examples/semi_pd/fleet/rolling_restart.py --place .fleet

Each instance leaves the gateway, finishes what is under way, ends, starts, and gets
requests again when it serves: no request fails. An instance that does not come up stops
the rest from being restarted. Exit code 0 when all have been.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

POLL_S = 0.5


def state(place: Path) -> dict[str, Any]:
    """What the fleet says about itself.

    Raises:
        FileNotFoundError: none runs with this ``--place``.
    """
    told: dict[str, Any] = json.loads((place / "fleet.json").read_text())
    return told


def restart(place: Path, *, timeout_s: float) -> bool:
    """Ask for a rolling restart; True if all were restarted in ``timeout_s``.

    Raises:
        FileNotFoundError: no fleet runs there, or it ended meanwhile.
    """
    before = state(place)
    os.kill(before["pid"], signal.SIGHUP)
    deadline = time.monotonic() + timeout_s
    shown = before["state"]
    while time.monotonic() < deadline:
        now = state(place)
        if now["state"] != shown:
            shown = now["state"]
            print(f"[{time.strftime('%H:%M:%S')}] {shown}", flush=True)
        if now["rolling_restarts"] > before["rolling_restarts"]:
            return bool(now["state"] == "serving")
        time.sleep(POLL_S)
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--place", type=Path, default=Path(".fleet"))
    parser.add_argument("--timeout", type=float, default=3600, help="in seconds")
    args = parser.parse_args()
    try:
        done = restart(args.place, timeout_s=args.timeout)
    except (FileNotFoundError, ProcessLookupError):
        print(f"no fleet runs with --place {args.place}", file=sys.stderr)
        return 1
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
