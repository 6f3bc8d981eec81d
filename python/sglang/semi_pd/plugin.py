# SPDX-License-Identifier: Apache-2.0
"""Entry point ``sglang.srt.plugins``: SGLang calls it early in every process."""

from __future__ import annotations

import multiprocessing

from sglang.semi_pd.hooks import note_registered
from sglang.semi_pd.server import main_process


def register() -> None:
    """Register Semi-PD's hooks with SGLang's ``HookRegistry``.

    Only the main process is hooked from here. Workers install their own hooks when
    they know what they are; a scheduler of plain SGLang needs none.
    """
    is_main = multiprocessing.parent_process() is None
    note_registered(main_process.install() if is_main else ())
