# SPDX-License-Identifier: Apache-2.0
"""Entry point ``sglang.srt.plugins``: SGLang calls it early in every process."""

from __future__ import annotations

from sglang.semi_pd.hooks import note_registered


def register() -> None:
    """Register Semi-PD's hooks with SGLang's ``HookRegistry``."""
    note_registered(())
