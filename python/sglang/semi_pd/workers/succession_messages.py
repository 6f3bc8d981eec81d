# SPDX-License-Identifier: Apache-2.0
"""What Semi-PD processes send to each other when a pair of workers follows another.

As in ``messages``, none has a field ``rid``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sglang.semi_pd.utils import InstanceRole

if TYPE_CHECKING:
    from sglang.semi_pd.workers.messages import Handover
    from sglang.semi_pd.workers.prefix_tree import CachedPath, StillLent
    from sglang.srt.managers.io_struct import TokenizedGenerateReqInput


@dataclass(frozen=True, slots=True)
class Introduce:
    """To the decode worker that serves: introduce what runs to a successor.

    Attributes:
        successor: its generation.
    """

    successor: int


@dataclass(frozen=True, slots=True)
class Introduced:
    """From a decode worker to its successor: requests that run and are to be its own.

    Attributes:
        requests: what clients asked for, as it arrived.
        are_all: no more will be introduced.
    """

    requests: list[TokenizedGenerateReqInput]
    are_all: bool


@dataclass(frozen=True, slots=True)
class IsIntroduced:
    """From a decode worker that is a standby to the main process: it has built all
    that was introduced to it."""

    generation: int


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """In the main process: a standby has answered requests of our own."""

    generation: int


@dataclass(frozen=True, slots=True)
class Leave:
    """To a worker: end after this iteration; a successor takes over.

    Attributes:
        successor: generation of the pair that takes over.
    """

    successor: int


@dataclass(frozen=True, slots=True)
class NotBegun:
    """From a prefill worker that was told to leave to the main process: requests that
    it has not begun. They need not wait until it has left.

    Attributes:
        request_ids: theirs.
    """

    request_ids: list[str]


@dataclass(frozen=True, slots=True)
class LastHandover:
    """From a leaving prefill worker to its decode worker: no more will come."""


@dataclass(frozen=True, slots=True)
class LastGiveBack:
    """From decode to a leaving prefill worker: what ends now goes to its successor."""


@dataclass(frozen=True, slots=True)
class PassedOn:
    """From a leaving decode worker to its successor: all that it runs, in one message.

    Sent after the rows and pages of all of them have become the successor's.
    """

    handovers: list[Handover]


@dataclass(frozen=True, slots=True)
class Heritage:
    """From a leaving prefill worker to its successor: the prefix cache.

    Sent after the successor has become the owner of its pages.

    Attributes:
        paths_by_rank: each rank's sequences, in pages of its own.
        lent: what must not be evicted before it is given back.
    """

    paths_by_rank: list[list[CachedPath]]
    lent: list[StillLent]


@dataclass(frozen=True, slots=True)
class HasLeft:
    """From a leaving worker to the main process, behind all that it ever sent.

    Attributes:
        unfinished: ids of the requests that it had and could not hand over.
    """

    role: InstanceRole
    generation: int
    unfinished: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """To a prefill worker: compute a request on from where it was interrupted.

    Attributes:
        request: what the client asked for, as it arrived.
        output_ids: tokens that the client has; generation goes on behind them.
    """

    request: TokenizedGenerateReqInput
    output_ids: list[int]


@dataclass(frozen=True, slots=True)
class Recover:
    """To a prefill worker, before any request: take over what dead workers left.

    Attributes:
        generations: of pairs that are gone, or never were.
        running: what their requests had come to; its KV is kept.
    """

    generations: Collection[int]
    running: list[Resume]


@dataclass(frozen=True, slots=True)
class DrainOutputs:
    """To the detokenizer: pass on all that these processes sent before they died."""

    pids: frozenset[int]


@dataclass(frozen=True, slots=True)
class OutputsDrained:
    """From the detokenizer: nothing of these processes is on the way any more."""

    pids: frozenset[int]
