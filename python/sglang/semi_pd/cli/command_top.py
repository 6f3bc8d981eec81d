# SPDX-License-Identifier: Apache-2.0
"""``semi-pd top``: a running server in the terminal, as it changes."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sglang.semi_pd.monitoring.instance_view import InstanceView

API_KEY = "SEMI_PD_API_KEY"
DEFAULT_URL = "http://127.0.0.1:30000"
_SHORTEST_INTERVAL_S = 0.1


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``semi-pd top``."""
    parser = subparsers.add_parser(
        "top",
        help="watch a running server",
        description="Watch a running server: split, TTFT and TPOT against the SLOs, "
        "KV blocks, queues, moves of the split, decisions. Ctrl-C ends it.",
        epilog=f"The environment variable {API_KEY} is sent as the server's API key.",
    )
    parser.add_argument(
        "--url", default=DEFAULT_URL, help=f"the server (default {DEFAULT_URL})"
    )
    parser.add_argument(
        "--interval",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="time between two looks (default 1)",
    )
    parser.add_argument("--once", action="store_true", help="look once and end")
    parser.add_argument(
        "--json", action="store_true", help="a line of JSON for each look"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Show it until interrupted; a pipe gets one look unless it asked for JSON."""
    from sglang.semi_pd.monitoring.status_client import StatusClient

    if not options.interval >= _SHORTEST_INTERVAL_S:
        raise ValueError(f"--interval must be at least {_SHORTEST_INTERVAL_S} s")
    client = StatusClient(options.url, os.environ.get(API_KEY, ""))
    # Raised somewhere, an interrupt can be lost: in a callback, say.
    has_enough = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: has_enough.set())
    if options.once or not (options.json or sys.stdout.isatty()):
        has_enough.set()
    views = _looks(client.view, options.interval, has_enough)
    try:
        if options.json:
            _print_json(views)
        else:
            _show(views, client.url, is_once=has_enough.is_set())
    except BrokenPipeError:
        # Whoever read it has seen enough; Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _looks(
    look: Callable[[], InstanceView], interval_s: float, has_enough: threading.Event
) -> Iterator[InstanceView]:
    yield look()
    while not has_enough.wait(interval_s):
        yield look()


def _print_json(views: Iterator[InstanceView]) -> None:
    import json
    from dataclasses import asdict

    for view in views:
        print(json.dumps(asdict(view)), flush=True)


def _show(views: Iterator[InstanceView], url: str, *, is_once: bool) -> None:
    from rich.console import Console
    from rich.live import Live
    from sglang.semi_pd.monitoring.terminal_view import TerminalView

    terminal, console = TerminalView(url), Console()
    if is_once:
        console.print(terminal.frame(next(views)))
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for view in views:
            live.update(terminal.frame(view), refresh=True)
