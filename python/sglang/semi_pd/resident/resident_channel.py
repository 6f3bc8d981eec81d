# SPDX-License-Identifier: Apache-2.0
"""How a worker gets at the resident's memory: one private socket, one exchange.

The worker says who it is; the resident registers it in the block table and answers with
a manifest, the descriptors of host memory travelling beside it, or with a refusal. A
socket that is not there yet is waited for; all else ends the attempt at once.

Frames are msgpack with typed fields and a length in front; peers of another user are
dropped unheard.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from sglang.semi_pd.errors import SemiPDError, WorkerStartError
from sglang.semi_pd.memory.memory_arena import ArenaHandle, TensorRef
from sglang.semi_pd.resident.model_manifest import ModelImage
from sglang.semi_pd.utils import InstanceRole

logger = logging.getLogger(__name__)

MAX_FRAME_BYTES = 64 << 20
MAX_FDS = 253  # the kernel's limit for one message
EXCHANGE_TIMEOUT_S = 30.0
_LENGTH = struct.Struct("!I")
_PEER_CREDENTIALS = struct.Struct("3i")


class AttachRefusedError(WorkerStartError):
    """The resident does not let this process attach; asking again would not help."""


class AttachRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a process asks of the resident; only a worker's role gets a lease."""

    role: InstanceRole
    generation: int


class PoolSizes(msgspec.Struct, frozen=True):
    """The memory pool that upstream's own code computed, in the resident."""

    max_total_num_tokens: int
    max_running_requests: int
    mem_fraction_static: float | None


class Refusal(msgspec.Struct, frozen=True, tag=True):
    """Why the resident does not let a process attach, in one line."""

    why: str


class Manifest(msgspec.Struct, frozen=True, tag=True):
    """Everything a worker needs to see the resident's memory.

    Attributes:
        slot, epoch: the worker's lease in the block table; 0 without one.
        arenas: what to map; host arenas have their descriptors in ``fds``, in order,
            behind the block table's, which is the first.
    """

    slot: int
    epoch: int
    arenas: list[ArenaHandle]
    model: ModelImage
    kv_buffers: list[TensorRef]
    req_to_token: TensorRef
    pool: PoolSizes


Answer = Callable[[AttachRequest], tuple[Manifest, list[int]]]
"""Registers the worker and describes the memory, with the descriptors to send. Raises
``ValueError`` or ``SemiPDError`` to refuse."""


class ResidentServer:
    """Answers workers, one at a time, in a thread of the resident."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self._answer = answer
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        old_mask = os.umask(0o177)
        try:
            # It has its name when it listens: a refused connection means that its
            # owner is gone, not that it is about to listen.
            unready = path.with_name(path.name + ".new")
            self._socket.bind(str(unready))
            self._socket.listen()
            unready.rename(path)
        finally:
            os.umask(old_mask)

    def start(self) -> None:
        threading.Thread(target=self._serve, name="attach", daemon=True).start()

    def _serve(self) -> None:
        while True:
            peer, _ = self._socket.accept()
            with peer:
                peer.settimeout(EXCHANGE_TIMEOUT_S)
                try:
                    self._exchange(peer)
                except (OSError, msgspec.MsgspecError) as error:
                    logger.warning("A worker's attempt to attach failed: %s", error)

    def _exchange(self, peer: socket.socket) -> None:
        if peer_uid(peer) != os.geteuid():
            logger.warning("Refused a process of another user at the resident's socket")
            return
        request = msgspec.msgpack.decode(_receive_frame(peer), type=AttachRequest)
        answer: Manifest | Refusal
        try:
            answer, fds = self._answer(request)
        except (SemiPDError, ValueError) as error:
            logger.error("Refused to let %s attach: %s", request.role.value, error)
            answer, fds = Refusal(" ".join(str(error).split())), []
        socket.send_fds(peer, [b"\0"], fds)
        peer.sendall(_frame(msgspec.msgpack.encode(answer)))


def attach(
    path: Path, request: AttachRequest, *, timeout_s: float
) -> tuple[Manifest, list[int]]:
    """Ask the resident for its memory, waiting for it to come up.

    Returns:
        The manifest, and descriptors that now belong to the caller.

    Raises:
        WorkerStartError: the resident is gone, broke off, or did not open its socket
            within ``timeout_s`` seconds.
        AttachRefusedError: it refused.
    """
    with _connect(path, time.monotonic() + timeout_s) as channel:
        channel.settimeout(EXCHANGE_TIMEOUT_S)
        try:
            channel.sendall(_frame(msgspec.msgpack.encode(request)))
            _, fds, _, _ = socket.recv_fds(channel, 1, MAX_FDS)
            frame = _receive_frame(channel)
        except OSError as error:
            raise _failed(f"the resident broke off: {error}") from error
    answer = msgspec.msgpack.decode(frame, type=Manifest | Refusal)
    if isinstance(answer, Refusal):
        raise AttachRefusedError(
            "The resident refused to let a worker attach",
            why=answer.why,
            mend="see the resident's lines in the log above",
        )
    return answer, fds


def peer_uid(peer: socket.socket) -> int:
    """The user at the other end, as the kernel knows it."""
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    return int(_PEER_CREDENTIALS.unpack(raw)[1])


def _connect(path: Path, deadline: float) -> socket.socket:
    while True:
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            channel.connect(str(path))
        except FileNotFoundError:
            channel.close()
            if time.monotonic() > deadline:
                raise _failed("the resident did not open its socket in time") from None
            time.sleep(0.02)
        except OSError as error:
            channel.close()
            raise _failed(f"the resident is gone: {error}") from error
        else:
            return channel


def _failed(why: str) -> WorkerStartError:
    return WorkerStartError(
        "A worker could not attach to the resident",
        why=why,
        mend="see the resident's lines in the log above",
    )


def _frame(payload: bytes) -> bytes:
    return _LENGTH.pack(len(payload)) + payload


def _receive_frame(channel: socket.socket) -> bytes:
    (length,) = _LENGTH.unpack(_receive_exactly(channel, _LENGTH.size))
    if length > MAX_FRAME_BYTES:
        raise OSError(f"a frame of {length} bytes is over the limit")
    return _receive_exactly(channel, length)


def _receive_exactly(channel: socket.socket, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        piece = channel.recv(count - len(received))
        if not piece:
            raise OSError("the peer closed the connection")
        received += piece
    return bytes(received)
