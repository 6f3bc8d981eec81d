# SPDX-License-Identifier: Apache-2.0
"""Fail closed: SGLang's plugin loader only logs what goes wrong in a plugin."""

from __future__ import annotations

import os
from collections.abc import Iterable

from sglang.semi_pd.errors import UpstreamMismatchError
from sglang.semi_pd.launch import flag_rules
from sglang.semi_pd.launch.refusal import exit_with_one_line

_registered: list[str] = []


def note_registered(targets: Iterable[str]) -> None:
    """The plugin calls this last, with what it asked SGLang to patch here."""
    _registered[:] = targets


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


@exit_with_one_line()
def require_ready() -> None:
    """Refuse to launch a server whose Semi-PD flags would have no effect.

    SGLang calls this through ``ServerArgs.check_server_args`` when it launches its
    processes, after it loaded its plugins.

    Raises:
        SemiPDError: if the plugin did not run here, or a hook is missing.
    """
    from sglang.version import __version__

    flag_rules.check_version(__version__)
    flag_rules.check_environment(os.environ)
    if not _registered:
        raise UpstreamMismatchError(
            "the Semi-PD plugin hooked nothing in this process",
            why="SGLang did not find it, it failed (SGLang's log has the cause), or "
            "this is a child made by multiprocessing",
            mend="reinstall sglang-semi-pd, and launch from a main process",
        )
    require_applied(_registered)
