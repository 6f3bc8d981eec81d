# SPDX-License-Identifier: Apache-2.0
"""Judge a server's command line before anything heavy is imported.

Importing SGLang takes tens of seconds; a mistyped flag should not. The import finder
runs ``main`` in the launching process only, when SGLang is first imported there. It
knows SGLang's flags from a scan of SGLang's source text, nothing is imported for it.
What can only be known later is checked by ``config``.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

from sglang.semi_pd.errors import ConfigError, SemiPDError
from sglang.semi_pd.launch import (
    flag_rules,
    gpu_rules,
    model_family,
    model_path,
    ports,
    start_progress,
    starting,
    upstream_source,
)
from sglang.semi_pd.launch.refusal import refuse
from sglang.semi_pd.launch.typed_flags import CommandLine
from sglang.semi_pd.server import fork_server


def main(arguments: Sequence[str]) -> None:
    """Check the command line of a server with Semi-PD flags, then ``begin``.

    Ends the process with one line and exit code 2 if the server cannot start.
    """
    if {"-h", "--help"} & set(arguments):
        return
    line = read(arguments)
    if not line.turns_semi_pd_on:
        return
    try:
        notes = check(line)
    except SemiPDError as error:
        refuse(error)
    spawns = line.value("--worker-start-method") == "spawn"
    begin(notes, forks=not (spawns or line.may_be_upstreams))


def begin(notes: Sequence[str], *, forks: bool) -> None:
    """The command line is good: start what may start before the imports.

    The fork server imports SGLang while this process does the same. Without workers of
    ours there is nothing to fork.
    """
    starting.listen(fork_server.kill)
    if forks:
        fork_server.start()
    for note in notes:
        start_progress.tell(note)
    start_progress.begin("importing SGLang, which takes tens of seconds on few cores")


def read(arguments: Sequence[str]) -> CommandLine:
    """The command line, understood with the flags of the installed SGLang."""
    root = upstream_source.root()
    return CommandLine(arguments, upstream_source.spellings(root))


def check(line: CommandLine) -> list[str]:
    """Raise ``ConfigError`` for the first thing that keeps the server from starting.

    Returns what the user should know of a start that can go on, a line each.
    """
    flag_rules.check_version(upstream_source.version(upstream_source.root()))
    flag_rules.check_environment(os.environ)
    if line.flags_are_known:
        check_spelling(line)
    check_own_flags(line)
    check_calibration(line)
    check_limits(line)
    notes = [] if line.has("--config") else [check_model(line)]
    if line.decides("host", "port"):
        check_port(line)
    notes.append(gpu_rules.check(line, os.environ))
    return [note for note in notes if note]


def check_spelling(line: CommandLine) -> None:
    """Refuse a flag that neither SGLang nor Semi-PD has."""
    for name in line.unknown:
        near = difflib.get_close_matches(name, sorted(line.known), n=1)
        raise ConfigError(
            f"{name} is refused",
            why="there is no such flag",
            mend=f"did you mean {near[0]}?" if near else "see --help",
        )


def check_own_flags(line: CommandLine) -> None:
    """Refuse values and combinations that Semi-PD's flags cannot have."""
    flag_rules.check_numbers(
        {
            field: line.number(field, kind, default)
            for field, (kind, default, _) in flag_rules.NUMBERS.items()
        }
    )
    prefill, decode = (
        line.number(field, int, default) for field, default in flag_rules.SHARES.items()
    )
    flag_rules.check_split(
        prefill, decode, overlap_allowed=line.has("--enable-sm-overlap")
    )
    flag_rules.check_modes(
        semi_pd=line.has("--enable-semi-pd"),
        coordinator=line.has("--enable-semi-pd-coordinator"),
        slo_aware=line.has("--enable-slo-aware"),
    )
    flag_rules.check_choice(
        "log_level",
        (line.value("--log-level") or "info").lower(),
        flag_rules.LOG_LEVELS,
    )
    flag_rules.check_choice(
        "sm_partition_backend",
        line.value("--sm-partition-backend") or "auto",
        flag_rules.PARTITION_BACKENDS,
    )
    flag_rules.check_choice(
        "worker_start_method",
        line.value("--worker-start-method") or "auto",
        flag_rules.START_METHODS,
    )
    mode = line.value("--slo-mode") or "follow"
    flag_rules.check_choice("slo_mode", mode, flag_rules.SLO_MODES)
    flag_rules.check_files(
        line.value("--slo-calibration"), line.value("--slo-decision-log")
    )


def check_calibration(line: CommandLine) -> None:
    """Refuse a file that is no calibration."""
    path = line.value("--slo-calibration")
    if path is not None:
        # It needs numpy, a fifth of a second that others need not wait.
        from sglang.semi_pd.simulation.simulator_coefficients import (
            SimulatorCoefficients,
        )

        SimulatorCoefficients.load(Path(path))


def check_limits(line: CommandLine) -> None:
    """Refuse what SGLang can do and Semi-PD cannot yet."""
    for limit in flag_rules.LIMITS:
        flag = flag_rules.flag(limit.field)
        value = True if limit.is_switch and line.has(flag) else line.value(flag)
        if value is not None and not limit.accepts(value):
            raise limit.error(value)


def check_model(line: CommandLine) -> str:
    """Refuse a model that cannot be had or served; says what is to be fetched."""
    path = line.model_path
    note = model_path.check(
        path, os.environ, needs_weights=line.value("--load-format") != "dummy"
    )
    if os.path.isdir(path) and not line.may_be_upstreams:
        model_family.require_supported(model_family.read_config(path), path)
    return note


def check_port(line: CommandLine) -> None:
    """Refuse a port that somebody else listens on."""
    host = line.value("--host") or "127.0.0.1"
    ports.require_free(host, line.number("port", int, 30000))
