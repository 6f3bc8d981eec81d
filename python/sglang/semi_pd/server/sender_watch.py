# SPDX-License-Identifier: Apache-2.0
"""Which processes are still connected to a ZeroMQ socket of ours.

A message may be on its way when its sender dies. ZeroMQ reads a connection to its end
before it reports it closed, so once no connection of a dead process is left, all that
it ever sent can be received.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

_PEER_CREDENTIALS = struct.Struct("3i")
POLL_S = 0.001
KEEP_UP_S = 0.5
"""ZeroMQ's thread stops at its 2000th event that nobody has read, and with it all that
it receives: after 500 pairs of workers, say."""


class SenderWatch:
    """Follows the connections that a bound socket accepts, from its creation on.

    For as long as the process lives: a thread of its own keeps up with them.
    """

    def __init__(self, watched: Any) -> None:
        events = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED
        self._monitor: Any = zmq.Socket.shadow(watched.get_monitor_socket(events))
        self._connections: set[int] = set()
        self._reading = threading.Lock()
        threading.Thread(
            target=self._keep_up, name="semi-pd-sender-watch", daemon=True
        ).start()

    def _keep_up(self) -> None:
        while not self._monitor.closed:
            time.sleep(KEEP_UP_S)
            self._read()

    def senders(self) -> set[int]:
        """Process ids of the connected peers."""
        self._read()
        return {_peer(fd) for fd in tuple(self._connections)}

    def _read(self) -> None:
        with self._reading:
            while not self._monitor.closed and self._monitor.poll(0):
                event = parse_monitor_message(self._monitor.recv_multipart())
                if event["event"] == zmq.EVENT_ACCEPTED:
                    self._connections.add(event["value"])
                else:
                    self._connections.discard(event["value"])

    def wait_until_gone(self, pids: frozenset[int], timeout_s: float) -> bool:
        """Block until none of these processes is connected; False after a while."""
        deadline = time.monotonic() + timeout_s
        while self.senders() & pids:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)
        return True


def _peer(fd: int) -> int:
    """The process at the other end of a connection; 0 if it has just been closed."""
    try:
        with socket.socket(fileno=os.dup(fd)) as connection:
            raw = connection.getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size
            )
    except OSError:
        return 0
    return int(_PEER_CREDENTIALS.unpack(raw)[0])
