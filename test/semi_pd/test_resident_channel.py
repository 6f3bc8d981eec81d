# SPDX-License-Identifier: Apache-2.0
"""A worker attaches, is refused, or finds nobody: each is settled as soon as it can."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import pytest
from sglang.semi_pd.errors import WorkerStartError
from sglang.semi_pd.memory.block_table import BlockTable
from sglang.semi_pd.memory.memory_arena import TensorRef
from sglang.semi_pd.resident.model_manifest import ModelImage
from sglang.semi_pd.resident.resident_channel import (
    AttachRefusedError,
    AttachRequest,
    Manifest,
    PoolSizes,
    ResidentServer,
    attach,
)
from sglang.semi_pd.utils import InstanceRole

PAGES = 64
PATIENCE_S = 300.0
"""Longer than a test may take: what waits it out, fails."""
READER = AttachRequest(InstanceRole.RESIDENT, 0)


class Book:
    """A block table and what a resident answers about it."""

    def __init__(self) -> None:
        self.table = BlockTable.create(num_pages=PAGES, num_rows=4, page_size=16)

    def answer(self, request: AttachRequest) -> tuple[Manifest, list[int]]:
        slot = epoch = 0
        if request.role.is_worker:
            table = BlockTable.attach(self.table.fd)
            lease = table.register_worker(request.role, request.generation)
            slot, epoch = lease.slot, lease.epoch
        rows = TensorRef(0, 0, "int32", (4, 16), (16, 1))
        sizes = PoolSizes(PAGES * 16, 4, None)
        manifest = Manifest(slot, epoch, [], ModelImage([]), [], rows, sizes)
        return manifest, [self.table.fd]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "resident"


def pages_behind(fds: list[int]) -> int:
    pages = BlockTable.attach(fds[0]).layout.num_pages
    for fd in fds:
        os.close(fd)
    return pages


def test_a_worker_waits_for_the_socket_and_attaches(path: Path) -> None:
    def begin() -> None:
        time.sleep(0.2)
        ResidentServer(path, Book().answer).start()

    threading.Thread(target=begin).start()
    request = AttachRequest(InstanceRole.DECODE, 1)
    manifest, fds = attach(path, request, timeout_s=PATIENCE_S)
    assert manifest.slot > 0
    assert pages_behind(fds) == PAGES
    assert path.stat().st_mode & 0o077 == 0


def test_a_refusal_is_told_at_once_and_the_next_one_is_answered(path: Path) -> None:
    book = Book()
    ResidentServer(path, book.answer).start()
    with pytest.raises(AttachRefusedError, match="no worker slot is free"):
        for generation in range(100):
            request = AttachRequest(InstanceRole.DECODE, generation)
            _, fds = attach(path, request, timeout_s=PATIENCE_S)
            os.close(fds[0])
    _, fds = attach(path, READER, timeout_s=PATIENCE_S)
    assert pages_behind(fds) == PAGES


def test_a_resident_that_is_gone_is_not_waited_for(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
    with pytest.raises(WorkerStartError, match="the resident is gone"):
        attach(path, READER, timeout_s=PATIENCE_S)


def test_a_resident_that_breaks_off_is_named(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        threading.Thread(target=lambda: listener.accept()[0].close()).start()
        with pytest.raises(WorkerStartError, match="the resident broke off"):
            attach(path, READER, timeout_s=PATIENCE_S)


def test_a_socket_that_never_comes_is_named(path: Path) -> None:
    with pytest.raises(WorkerStartError, match="did not open its socket in time"):
        attach(path, READER, timeout_s=0.1)
