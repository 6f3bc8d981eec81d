# SPDX-License-Identifier: Apache-2.0
"""``semi-pd serve …``: check what is asked for, then become ``sglang serve …``."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from typing import Any, NoReturn

from sglang.semi_pd.cli.command_doctor import SEE
from sglang.semi_pd.errors import GUIDE, SemiPDError, UpstreamMismatchError

DEFAULT_SWITCH = "--enable-semi-pd-coordinator"


def add_parser(subparsers: Any) -> None:
    """Add the sub-command to the command's parser."""
    parser = subparsers.add_parser(
        "serve",
        add_help=False,
        help="check the flags and this host in under a second, then serve",
        description=f"Takes every flag of `sglang serve`. Without a Semi-PD switch it "
        f"adds {DEFAULT_SWITCH}.",
    )
    parser.set_defaults(run=run, takes_rest=True)


def run(options: argparse.Namespace) -> int:
    """Does not return if all is well: this process is the server then."""
    from sglang.semi_pd.launch import preflight
    from sglang.semi_pd.launch.refusal import EXIT_CODE, one_line

    arguments = _with_switch(options.rest)
    if not {"-h", "--help"} & set(arguments):
        try:
            line = preflight.read(arguments)
            preflight.check(line)
            _require_model(line.model_path or line.value("--config") or "")
        except SemiPDError as error:
            print(one_line(error), file=sys.stderr)
            return EXIT_CODE
        if _host_is_ill(line):
            return EXIT_CODE
    _become_server(arguments)


def _with_switch(arguments: Sequence[str]) -> list[str]:
    from sglang.semi_pd.launch import preflight

    if preflight.read(arguments).turns_semi_pd_on:
        return list(arguments)
    return [*arguments, DEFAULT_SWITCH]


def _require_model(given: str) -> None:
    from sglang.semi_pd.errors import ConfigError

    if not given:
        raise ConfigError(
            "no model is given",
            why="a server cannot start without one",
            mend="use semi-pd serve --model-path MODEL",
        )


def _host_is_ill(line: Any) -> bool:
    """Print what the doctor finds wrong, and whether it is more than a note."""
    from sglang.semi_pd.doctor import installation, leftovers
    from sglang.semi_pd.doctor.examination import as_line, is_ill
    from sglang.semi_pd.doctor.finding import State

    findings = [*installation.examine(os.environ), *leftovers.examine()]
    for one in findings:
        if one.state in (State.FAILED, State.NOTE):
            print(as_line(one), file=sys.stderr)
    if is_ill(findings):
        print(f"docs: {GUIDE}#{SEE}", file=sys.stderr)
    return is_ill(findings)


def _become_server(arguments: Sequence[str]) -> NoReturn:
    program = os.path.join(sysconfig.get_path("scripts"), "sglang")
    found = program if os.path.exists(program) else shutil.which("sglang")
    if found is None:
        raise UpstreamMismatchError(
            "the command sglang was not found",
            why=f"it is neither {program} nor on the PATH",
            mend="install sglang into this environment",
        )
    sys.stdout.flush()
    os.execv(found, [found, "serve", *arguments])
