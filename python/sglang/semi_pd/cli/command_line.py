# SPDX-License-Identifier: Apache-2.0
"""The ``semi-pd`` command: one sub-command per module named in ``COMMANDS``.

A command module offers ``add_parser(subparsers)``, which sets ``run`` (a function of
the parsed arguments that returns the exit status) as a default. It imports what takes
time inside ``run``, so that ``semi-pd --help`` stays quick. One that sets
``takes_rest`` finds what follows its name in ``options.rest``.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from sglang.semi_pd.errors import SemiPDError

COMMANDS = (
    "command_doctor",
    "command_serve",
    "command_top",
    "command_replay",
    "command_simulate",
)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with every sub-command."""
    parser = argparse.ArgumentParser(
        prog="semi-pd",
        description="Tools around a Semi-PD server: prefill and decode on one GPU.",
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in COMMANDS:
        importlib.import_module(f"sglang.semi_pd.cli.{name}").add_parser(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command; a user's mistake is printed, not raised."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser()
    options, rest = parser.parse_known_args(given)
    if getattr(options, "takes_rest", False):
        options.rest = given[1:]
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return int(options.run(options))
    except (SemiPDError, ValueError, OSError) as error:
        print(f"semi-pd: {error}", file=sys.stderr)
        return 2
