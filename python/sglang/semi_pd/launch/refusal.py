# SPDX-License-Identifier: Apache-2.0
"""How a start ends that is refused, in one line, or that fails, in four."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from _sglang_semi_pd_overlay import server_arguments
from sglang.semi_pd.errors import GUIDE, ConfigError, SemiPDError
from sglang.semi_pd.launch import start_progress

logger = logging.getLogger(__name__)

EXIT_CODE = 2
FAILED = 1
"""Exit code where the flags are good and something else is not."""


SEE = "the-first-start"
"""The guide's part on all that is refused, whatever the type of the error."""


def one_line(error: SemiPDError) -> str:
    """The error as a line of the log."""
    return f"semi-pd: {error.in_one_line()} ({GUIDE}#{SEE})"


def refuse(error: SemiPDError) -> NoReturn:
    """Say why this process does not start, and end it."""
    print(one_line(error), file=sys.stderr, flush=True)
    raise SystemExit(EXIT_CODE) from None


@contextmanager
def exit_with_one_line() -> Iterator[None]:
    """In a process started to serve, turn a Semi-PD error into a refused start.

    Elsewhere, under somebody's Python program, the error goes on as it is.
    """
    try:
        yield
    except SemiPDError as error:
        if server_arguments() is None:
            raise
        refuse(error)


@contextmanager
def exit_without_traceback(
    *, end: Callable[[], None], shows_it: bool
) -> Iterator[None]:
    """In a process started to serve, let a start that fails end in a few lines.

    What, why, mend, and where to read on. Elsewhere, under somebody's Python program,
    the error goes on as it is.

    Args:
        end: ends what has been started so far.
        shows_it: show the traceback all the same.
    """
    try:
        yield
    except SemiPDError as error:
        start_progress.end()
        end()
        if server_arguments() is None:
            raise
        logger.error("Failed to initialize Semi-PD Coordinator: %s", error)
        if shows_it:
            raise
        code = EXIT_CODE if isinstance(error, ConfigError) else FAILED
        raise SystemExit(code) from None
