# SPDX-License-Identifier: Apache-2.0
"""Words every part of Semi-PD shares. Imports nothing of SGLang or torch."""

from __future__ import annotations

from enum import Enum


class InstanceRole(str, Enum):
    """Which process of one Semi-PD instance is speaking.

    ``RESIDENT`` owns the memory (weights, KV cache, request rows); ``PREFILL`` and
    ``DECODE`` run the model over it.
    """

    RESIDENT = "resident"
    PREFILL = "prefill"
    DECODE = "decode"

    @property
    def is_worker(self) -> bool:
        """Whether processes of this role run model steps."""
        return self is not InstanceRole.RESIDENT
