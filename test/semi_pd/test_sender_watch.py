# SPDX-License-Identifier: Apache-2.0
"""Who is connected to a socket of ours, however many have come and gone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from sglang.semi_pd.server.sender_watch import SenderWatch

MANY = 1500
"""Twice as many events: more than ZeroMQ keeps."""
PATIENCE_MS = 10_000


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield made
    made.destroy(linger=0)


def test_a_socket_still_receives_after_many_senders(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path
) -> None:
    address = f"ipc://{tmp_path}/inbox"
    inbox = context.socket(zmq.PULL)
    watch = SenderWatch(inbox)
    inbox.bind(address)
    elsewhere: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        for number in range(MANY):
            sender = elsewhere.socket(zmq.PUSH)
            sender.connect(address)
            sender.send(str(number).encode())
            assert inbox.poll(PATIENCE_MS), f"nothing came from sender {number}"
            inbox.recv()
            sender.close(linger=0)
        last = elsewhere.socket(zmq.PUSH)
        last.connect(address)
        last.send(b"last")
        assert inbox.poll(PATIENCE_MS)
        assert watch.senders() == {os.getpid()}
        last.close(linger=0)
        assert watch.wait_until_gone(frozenset([os.getpid()]), PATIENCE_MS / 1000)
    finally:
        elsewhere.destroy(linger=0)
