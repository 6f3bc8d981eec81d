# SPDX-License-Identifier: Apache-2.0
"""What the fork server imports, and whether it may fork (``server.fork_server``).

Outside the ``sglang`` package on purpose: importing SGLang is what asks the GPU for its
properties, and the answers have to be in place before.
"""

from __future__ import annotations

import importlib
import traceback

import _sglang_semi_pd_overlay as overlay

IMPORTS = "sglang.semi_pd.server.fork_server_imports"


def import_all() -> str:
    """Import what processes need, with the GPU left alone.

    Returns:
        Why this process must not be forked; empty if it may.
    """
    with overlay.stand_in_for_sglang():
        gpu_answers = importlib.import_module("sglang.semi_pd.server.gpu_answers")
    try:
        with gpu_answers.instead_of_cuda():
            importlib.import_module(IMPORTS)
    except Exception as error:  # noqa: BLE001 - workers then import for themselves
        traceback.print_exc()
        return f"its imports failed ({type(error).__name__}: {error})"
    touched = gpu_answers.open_gpus()
    return f"its imports opened {', '.join(touched)}" if touched else ""


WHY_NOT = import_all()
