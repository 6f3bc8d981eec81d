# SPDX-License-Identifier: Apache-2.0
"""The memory manager over GPU memory: two processes, one copy."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from sglang.semi_pd.unified_memory_manager import UnifiedMemoryManager
from sglang.semi_pd.utils import InstanceRole

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

PROGRAM = """
    import pickle, sys, torch
    from sglang.semi_pd.unified_memory_manager import UnifiedMemoryManager
    from sglang.semi_pd.utils import InstanceRole
    manager = UnifiedMemoryManager.attach(pickle.load(sys.stdin.buffer))
    views = manager.access_kv_cache("req_1", 0, InstanceRole.DECODE)
    assert all(int(view.min()) == int(view.max()) == 42 for view in views)
    views[0].fill_(7)
    torch.cuda.synchronize()
    manager.allocate_kv_cache_blocks("req_2", 0, 5, InstanceRole.DECODE)
    print(views[0].device.type, len(views))
"""


def test_another_process_reads_and_writes_the_same_gpu_memory(tmp_path):
    package = Path(sys.modules["sglang.semi_pd"].__path__[0])
    (tmp_path / "sglang").mkdir()
    (tmp_path / "sglang" / "__init__.py").touch()
    (tmp_path / "sglang" / "semi_pd").symlink_to(package)
    with UnifiedMemoryManager(1000, 1 << 20, 16, torch.device("cuda")) as manager:
        manager.allocate_kv_cache_blocks("req_1", 0, 10, InstanceRole.PREFILL)
        views = manager.access_kv_cache("req_1", 0, InstanceRole.PREFILL)
        for view in views:
            view.fill_(42)
        torch.cuda.synchronize()
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(PROGRAM)],
            input=pickle.dumps(manager.handle()),
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
            },
            capture_output=True,
            timeout=300,
        )
        assert done.stdout.decode().strip() == "cuda 10", done.stderr.decode()
        assert int(views[0].min()) == int(views[0].max()) == 7
        assert manager.get_block_table_index("req_2", 0) == [10, 11, 12, 13, 14]
