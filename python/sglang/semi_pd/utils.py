# SPDX-License-Identifier: Apache-2.0
"""Words every part of Semi-PD shares. Imports nothing of SGLang or torch."""

from __future__ import annotations

import hashlib
import signal
from enum import Enum

END_SIGNAL = signal.SIGUSR1
"""Tells a child to end, in its own time. Not SIGTERM: systemd, ``timeout`` and Slurm
send that to every process, and only the main process is to take it."""


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


_NUMBER_BITS = 16


def rid_hash(rid: str) -> int:
    """48 bits that name a request, the same in every process; never 0."""
    digest = hashlib.blake2b(rid.encode(), digest_size=6).digest()
    return int.from_bytes(digest, "little") or 1


def row_label(rid: str, number: int) -> int:
    """64 bits on a request's row in the block table: its request, and which handover.

    The number tells apart two requests that used one id after the other.
    """
    return rid_hash(rid) << _NUMBER_BITS | number % (1 << _NUMBER_BITS)


def label_rid_hash(label: int) -> int:
    """The ``rid_hash`` in a ``row_label``."""
    return label >> _NUMBER_BITS
