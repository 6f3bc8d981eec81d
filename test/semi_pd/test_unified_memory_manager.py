# SPDX-License-Identifier: Apache-2.0
"""The guide's memory manager: its calls as printed, from several processes."""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from sglang.semi_pd.memory.block_table import LayoutMismatchError
from sglang.semi_pd.memory.shared_memory import SharedMemory
from sglang.semi_pd.unified_memory_manager import UnifiedMemoryManager
from sglang.semi_pd.utils import InstanceRole
from table_processes import SOAK, assert_in_order, fork, run_to_crash, wait

PREFILL, DECODE = InstanceRole.PREFILL, InstanceRole.DECODE
BLOCKS, BLOCK_SIZE = 100, 4096

GUIDE = """
from sglang.semi_pd.unified_memory_manager import UnifiedMemoryManager
from sglang.semi_pd.utils import InstanceRole
import torch

# 创建统一内存管理器
memory_manager = UnifiedMemoryManager(
    total_blocks=1000,
    block_size=4096,
    page_size=16,
    device=torch.device("cpu"),
)

# 分配KV cache块
block_ids = memory_manager.allocate_kv_cache_blocks(
    request_id="req_1",
    layer_id=0,
    num_blocks=10,
    requester_role=InstanceRole.PREFILL,
)

if block_ids:
    print(f"分配了 {len(block_ids)} 个块")

    # 获取块表索引
    block_indices = memory_manager.get_block_table_index("req_1", 0)
    print(f"块表索引: {block_indices}")

    # 访问KV cache
    kv_tensors = memory_manager.access_kv_cache(
        request_id="req_1",
        layer_id=0,
        accessor_role=InstanceRole.PREFILL,
    )

    # 释放块
    memory_manager.deallocate_kv_cache_blocks("req_1")
"""


@pytest.fixture
def manager():
    made = UnifiedMemoryManager(BLOCKS, BLOCK_SIZE, 16, torch.device("cpu"))
    yield made
    assert_in_order(made._blocks.table)
    made.close()


def test_the_guide_runs_as_printed(capsys):
    names: dict[str, object] = {}
    exec(GUIDE, names)  # noqa: S102
    printed = capsys.readouterr().out
    assert "分配了 10 个块" in printed
    assert f"块表索引: {list(range(10))}" in printed
    assert len(names["kv_tensors"]) == 10
    assert names["memory_manager"].get_memory_usage()["allocated_blocks"] == 0


def test_repeated_calls_append_in_order(manager):
    first = manager.allocate_kv_cache_blocks("a", 0, 3, PREFILL)
    other = manager.allocate_kv_cache_blocks("a", 1, 2, PREFILL)
    more = manager.allocate_kv_cache_blocks("a", 0, 2, DECODE)
    manager.allocate_kv_cache_blocks("b", 0, 2, DECODE)
    assert manager.get_block_table_index("a", 0) == first + more
    assert manager.get_block_table_index("a", 1) == other
    assert manager.deallocate_kv_cache_blocks("a", 0) == 5
    assert manager.get_block_table_index("a", 1) == other
    assert manager.deallocate_kv_cache_blocks("a") == 2
    assert manager.get_memory_usage()["allocated_blocks"] == 2


def test_order_survives_reuse_of_blocks(manager):
    manager.allocate_kv_cache_blocks("gap", 0, 5, PREFILL)
    high = manager.allocate_kv_cache_blocks("a", 0, 5, PREFILL)
    manager.deallocate_kv_cache_blocks("gap")
    low = manager.allocate_kv_cache_blocks("a", 0, 5, PREFILL)
    assert max(low) < min(high)
    assert manager.get_block_table_index("a", 0) == high + low


def test_tensors_are_the_memory_itself(manager):
    blocks = manager.allocate_kv_cache_blocks("a", 0, 2, PREFILL)
    written = manager.access_kv_cache("a", 0, PREFILL)
    assert [tensor.shape for tensor in written] == [(BLOCK_SIZE,)] * 2
    assert all(tensor.dtype == torch.uint8 for tensor in written)
    written[1].fill_(9)
    read = manager.access_kv_cache("a", 0, DECODE)
    assert read[1].data_ptr() == written[1].data_ptr()
    assert read[1].data_ptr() - read[0].data_ptr() == BLOCK_SIZE
    assert int(manager._pool[blocks[1]].sum()) == 9 * BLOCK_SIZE


def test_all_or_nothing_and_the_log_says_why(manager, caplog):
    manager.allocate_kv_cache_blocks("a", 0, 98, PREFILL)
    with caplog.at_level(logging.WARNING):
        assert manager.allocate_kv_cache_blocks("b", 3, 5, DECODE) is None
    assert [record.getMessage() for record in caplog.records] == [
        "Failed to allocate KV cache blocks: decode asked for 5 for layer 3 of "
        "request b, 2 of 100 are free"
    ]
    assert manager.get_memory_usage()["requests"] == 1
    with pytest.raises(ValueError, match="request_id"):
        manager.get_block_table_index("b", 3)


def test_usage(manager):
    manager.allocate_kv_cache_blocks("a", 0, 30, PREFILL)
    manager.allocate_kv_cache_blocks("b", 0, 10, DECODE)
    manager.deallocate_kv_cache_blocks("a")
    usage = manager.get_memory_usage()
    assert usage["total_memory_bytes"] == BLOCKS * BLOCK_SIZE
    assert usage["allocated_memory_bytes"] == 10 * BLOCK_SIZE
    assert usage["utilization_ratio"] == pytest.approx(0.1)
    assert usage["free_blocks"] == 90
    assert usage["peak_allocated_blocks"] == 40
    assert usage["requests"] == 1
    assert usage["blocks_by_role"] == {"resident": 0, "prefill": 0, "decode": 10}


@pytest.mark.parametrize(
    "name, value",
    [
        ("request_id", ""),
        ("request_id", 7),
        ("request_id", "a\0b"),
        ("request_id", "ü" * 65),
        ("layer_id", -1),
        ("layer_id", "0"),
        ("num_blocks", 0),
        ("num_blocks", 2.0),
        ("num_blocks", True),
        ("requester_role", "prefill"),
    ],
)
def test_wrong_arguments_are_named(manager, name, value):
    good = {"request_id": "a", "layer_id": 0, "num_blocks": 1}
    with pytest.raises(ValueError, match=name):
        manager.allocate_kv_cache_blocks(
            **{**good, "requester_role": PREFILL, name: value}
        )


def test_unknown_requests_are_named(manager):
    manager.allocate_kv_cache_blocks("a", 0, 1, PREFILL)
    for call in (
        lambda: manager.get_block_table_index("b", 0),
        lambda: manager.access_kv_cache("b", 0, PREFILL),
        lambda: manager.deallocate_kv_cache_blocks("b"),
    ):
        with pytest.raises(ValueError, match="request_id: 'b' has no"):
            call()
    with pytest.raises(ValueError, match="layer_id: 'a' has no blocks in 1"):
        manager.get_block_table_index("a", 1)
    with pytest.raises(ValueError, match="layer_id"):
        manager.deallocate_kv_cache_blocks("a", 1)
    with pytest.raises(ValueError, match="accessor_role"):
        manager.access_kv_cache("a", 0, None)
    manager.deallocate_kv_cache_blocks("a")
    with pytest.raises(ValueError, match="request_id"):
        manager.deallocate_kv_cache_blocks("a")


@pytest.mark.parametrize("name", ["total_blocks", "block_size", "page_size", "device"])
def test_wrong_sizes_are_named(name):
    good = {"total_blocks": 1, "block_size": 1, "page_size": 1, "device": "cpu"}
    for wrong in (0, "none"):
        with pytest.raises(ValueError, match=name):
            UnifiedMemoryManager(**{**good, name: "meta" if wrong == 0 else wrong})


def test_an_attached_process_shares_blocks_and_memory(manager):
    blocks = manager.allocate_kv_cache_blocks("req_1", 0, 3, PREFILL)
    manager.access_kv_cache("req_1", 0, PREFILL)[2].fill_(42)
    handle = pickle.loads(pickle.dumps(manager.handle()))

    def other() -> None:
        with UnifiedMemoryManager.attach(handle) as mine:
            assert mine.get_block_table_index("req_1", 0) == blocks
            assert int(mine.access_kv_cache("req_1", 0, DECODE)[2][0]) == 42
            mine.access_kv_cache("req_1", 0, DECODE)[0].fill_(7)
            mine.allocate_kv_cache_blocks("req_2", 5, 4, DECODE)

    assert wait(fork(other)) == 0
    assert int(manager.access_kv_cache("req_1", 0, PREFILL)[0][-1]) == 7
    assert manager.get_block_table_index("req_2", 5) == [3, 4, 5, 6]
    assert manager.deallocate_kv_cache_blocks("req_2") == 4


def test_a_stranger_attaches_by_descriptors_alone(manager, tmp_path):
    """A program that shares no memory with this one: it gets three descriptors."""
    manager.allocate_kv_cache_blocks("req_1", 0, 3, PREFILL)
    package = Path(sys.modules["sglang.semi_pd"].__file__).parent
    (tmp_path / "sglang").mkdir()
    (tmp_path / "sglang" / "__init__.py").touch()
    (tmp_path / "sglang" / "semi_pd").symlink_to(package)
    program = """
        import dataclasses, pickle, socket, sys
        from sglang.semi_pd.unified_memory_manager import UnifiedMemoryManager
        channel = socket.socket(fileno=int(sys.argv[1]))
        data, fds, _, _ = socket.recv_fds(channel, 4096, 3)
        handle = dataclasses.replace(
            pickle.loads(data), pid=None,
            table_fd=fds[0], index_fd=fds[1], arena_fd=fds[2],
        )
        with UnifiedMemoryManager.attach(handle) as manager:
            print(manager.deallocate_kv_cache_blocks("req_1"))
    """
    here, there = socket.socketpair()
    handle = manager.handle()
    fds = [handle.table_fd, handle.index_fd, handle.arena_fd]
    socket.send_fds(here, [pickle.dumps(handle)], fds)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(there.fileno())],
        pass_fds=[there.fileno()],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == "3", done.stderr
    assert manager.get_memory_usage()["allocated_blocks"] == 0


def test_a_stale_handle_is_refused(manager):
    stale = dataclasses.replace(manager.handle(), token=1)
    with pytest.raises(LayoutMismatchError, match="gone"):
        UnifiedMemoryManager.attach(stale)
    memory = SharedMemory.create("other", 4096)
    wrong = dataclasses.replace(manager.handle(), index_fd=memory.fd)
    with pytest.raises(LayoutMismatchError, match="not a request index"):
        UnifiedMemoryManager.attach(wrong)


@pytest.mark.parametrize("repeat", range(20 if SOAK else 2))
@pytest.mark.parametrize(
    "point, request_id",
    [
        (f"allocate.{step}", request_id)
        for step in ("taken", "named", "tagged")
        for request_id in ("old", "new")
    ]
    + [(f"free.{step}", "old") for step in ("begun", "cleared", "given")]
    + [(f"take.{step}", "new") for step in ("begun", "owned", "counted")]
    + [(f"give.{step}", "old") for step in ("begun", "freed", "counted")],
)
def test_death_half_way_is_undone_or_completed(manager, point, request_id, repeat):
    manager.allocate_kv_cache_blocks("old", 0, 10, PREFILL)
    is_free = point.startswith(("free", "give"))

    def work() -> None:
        if is_free:
            manager.deallocate_kv_cache_blocks("old")
        else:
            manager.allocate_kv_cache_blocks(request_id, 0, 5, DECODE)

    assert run_to_crash(point, work)
    usage = manager.get_memory_usage()
    left = 0 if is_free else 1
    assert (usage["allocated_blocks"], usage["requests"]) == (10 * left, left)
    assert_in_order(manager._blocks.table)
    assert manager.allocate_kv_cache_blocks("new", 0, 100 - 10 * left, PREFILL)


@pytest.mark.parametrize("point", ["settle.index", "settle.given"])
def test_death_during_the_repair(manager, point):
    manager.allocate_kv_cache_blocks("old", 0, 10, PREFILL)
    assert run_to_crash(
        "allocate.tagged",
        lambda: manager.allocate_kv_cache_blocks("new", 0, 5, DECODE),
    )
    assert run_to_crash(point, manager.get_memory_usage)
    assert manager.get_memory_usage()["allocated_blocks"] == 10


def test_four_processes_allocate_and_free(manager):
    """No two requests ever have the same block: each checks what it wrote."""
    rounds = 500 if SOAK else 60

    def work(number: int) -> None:
        for round_number in range(rounds):
            name = f"{number}-{round_number}"
            if manager.allocate_kv_cache_blocks(name, 0, 20, PREFILL) is None:
                continue
            for block in manager.access_kv_cache(name, 0, PREFILL):
                block.fill_(number)
            for block in manager.access_kv_cache(name, 0, DECODE):
                assert int(block.min()) == int(block.max()) == number
            assert manager.deallocate_kv_cache_blocks(name) == 20

    pids = [fork(lambda n=n: work(n)) for n in range(1, 5)]
    assert [wait(pid) for pid in pids] == [0] * 4
    assert manager.get_memory_usage()["allocated_blocks"] == 0


def test_close_gives_everything_back():
    UnifiedMemoryManager(4, 64, 1, "cpu").close()
    fds = len(os.listdir("/proc/self/fd"))
    with UnifiedMemoryManager(4, 64, 1, "cpu") as manager:
        manager.allocate_kv_cache_blocks("a", 0, 1, PREFILL)
    manager.close()
    del manager  # and with it the last views, which keep their mappings alive
    assert len(os.listdir("/proc/self/fd")) == fds


@pytest.mark.parametrize(
    ("asked", "pages"), [(1, 1), (1 << 21, 1), ((1 << 21) + 1, 2), (1 << 30, 512)]
)
def test_gpu_memory_is_allocated_in_whole_pages(asked, pages):
    pytest.importorskip("cuda.bindings.runtime")
    from sglang.semi_pd.memory.cuda_ipc import PAGE_BYTES, allocation_bytes

    assert allocation_bytes(asked) == pages * PAGE_BYTES
