# SPDX-License-Identifier: Apache-2.0
"""A handover lends the pages that a row ends up with, though the GPU is behind."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

CYCLES = 200_000_000  # about 0.1 s


def test_a_row_that_is_being_rewritten_is_waited_for(tmp_path: Path) -> None:
    """Its prompt was in the prefix cache, in other slots, when it had been computed."""
    from sglang.semi_pd.memory.block_table import BlockTable
    from sglang.semi_pd.utils import InstanceRole
    from sglang.semi_pd.workers.handover import HandoverSender

    table = BlockTable.create(num_pages=64, num_rows=8, page_size=1)
    prefill = table.bound_to(table.register_worker(InstanceRole.PREFILL, 1))
    decode = table.bound_to(table.register_worker(InstanceRole.DECODE, 1))
    slots = torch.zeros((9, 16), dtype=torch.int32, device="cuda")
    rows: Any = SimpleNamespace(
        req_to_token=slots, device="cuda", give_up=lambda req: req.req_pool_idx
    )
    silent: Any = SimpleNamespace(run_directory=tmp_path, tp_rank=1, generation=1)
    sender = HandoverSender(silent, 1, rows, prefill)
    taken, free_rows = prefill.take_pages(4), prefill.take_rows(1)
    assert taken is not None
    assert free_rows is not None
    pages, row = torch.from_numpy(taken).cuda(), free_rows[0]
    req: Any = SimpleNamespace(req_pool_idx=row, kv_committed_len=2, rid="r")
    with torch.cuda.stream(torch.cuda.Stream()):
        slots[row, :2] = pages[:2]
        torch.cuda._sleep(CYCLES)
        slots[row, :2] = pages[2:]
        sender.hand_over(req, 2, is_rewritten=True)
    assert decode.unshare(pages[2:].tolist()) == 0, "these are decode's to give back"
