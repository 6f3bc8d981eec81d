# SPDX-License-Identifier: Apache-2.0
"""``semi-pd doctor``: what on this host keeps a server from starting?"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

from sglang.semi_pd.errors import GUIDE

SEE = "the-doctor"
DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 30000


def add_parser(subparsers: Any) -> None:
    """Add the sub-command to the command's parser."""
    parser = subparsers.add_parser(
        "doctor",
        help="check this host: GPU, MPS, packages, hooks, port, leftovers",
        description="Check what a start depends on, in about a second. Each line has "
        "a mark: ✓ well, ! worth knowing, ✗ keeps a server from starting (with what "
        "mends it), – does not matter here. Exit code 1 if there is a ✗, else 0.",
    )
    parser.add_argument("--host", default=DEFAULT_HOST, help="where it will serve")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the findings as they come."""
    from sglang.semi_pd.doctor.examination import as_json, as_line, examine, is_ill

    began_s = time.monotonic()
    findings = []
    for one in examine(os.environ, host_name=options.host, port=options.port):
        findings.append(one)
        if not options.json:
            print(as_line(one), flush=True)
    seconds = time.monotonic() - began_s
    if options.json:
        print(as_json(findings, seconds))
    else:
        ill = f"a server cannot start here ({GUIDE}#{SEE})"
        end = ill if is_ill(findings) else "ready to serve"
        print(f"\n{len(findings)} checks in {seconds:.1f} s: {end}")
    return 1 if is_ill(findings) else 0
