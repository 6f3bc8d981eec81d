# SPDX-License-Identifier: Apache-2.0
"""SGLang's offline ``Engine`` with prefill and decode as two processes is refused."""

from __future__ import annotations

import sys

from sglang.semi_pd.errors import ConfigError


def refuse() -> None:
    """Raise if an ``Engine`` is what starts the processes.

    SGLang's HTTP server starts them with the same class method, but has no ``Engine``:
    only who called tells them apart.

    Raises:
        ConfigError: it is one.
    """
    from sglang.srt.entrypoints.engine import Engine

    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if isinstance(frame.f_locals.get("self"), Engine):
            raise ConfigError(
                "sglang.Engine with Semi-PD is refused",
                why="its event loop runs during calls only, so nobody could replace a "
                "worker between them, and its end would end the program",
                mend="use create_semi_pd_coordinator, or start a server",
            )
