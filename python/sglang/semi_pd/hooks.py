# SPDX-License-Identifier: Apache-2.0
"""Fail closed: SGLang's plugin loader only logs what goes wrong in a plugin."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from sglang.semi_pd import flag_rules
from sglang.semi_pd.errors import UpstreamMismatchError

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

_registered: list[str] = []


def note_registered(targets: Iterable[str]) -> None:
    """Called last by the plugin: it ran to its end, and hooked these targets."""
    _registered[:] = [flag_rules.PLUGIN_NAME, *targets]


def require_applied(targets: Iterable[str]) -> None:
    """Refuse to go on unless SGLang patched every one of these targets.

    Raises:
        UpstreamMismatchError: naming the first hook that is not in place.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry

    for target in targets:
        if target not in HookRegistry._patched:
            raise UpstreamMismatchError(
                f"hook {target} did not apply",
                why="SGLang could not patch it; its log has the cause",
                mend=f"reinstall sglang=={flag_rules.TESTED_SGLANG}",
            )


def require_ready(server_args: ServerArgs) -> None:
    """Refuse to launch a server whose Semi-PD flags would have no effect.

    SGLang calls this through ``ServerArgs.check_server_args`` when it launches its
    processes, after it loaded its plugins.

    Raises:
        UpstreamMismatchError: if the plugin did not run, or a hook is missing.
    """
    from sglang.version import __version__

    flag_rules.check_version(__version__)
    flag_rules.check_environment(os.environ)
    if not _registered:
        raise UpstreamMismatchError(
            "the Semi-PD plugin did not run",
            why="SGLang did not find it or it failed; SGLang's log has the cause",
            mend="reinstall sglang-semi-pd in this environment",
        )
    require_applied(_registered[1:])
