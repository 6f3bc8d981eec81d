# SPDX-License-Identifier: Apache-2.0
"""How a refused start ends: one line on stderr and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from _sglang_semi_pd_overlay import server_arguments
from sglang.semi_pd.errors import SemiPDError

EXIT_CODE = 2


def one_line(error: SemiPDError) -> str:
    """The error as a line of the log."""
    return f"semi-pd: {error.in_one_line()}"


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
