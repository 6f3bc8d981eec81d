# SPDX-License-Identifier: Apache-2.0
"""What all tests share.

Tests run in two passes (see the Makefile). With ``SEMI_PD_LIGHT=1`` an empty ``sglang``
stands in for SGLang, so that ``sglang.semi_pd``'s pure modules import in milliseconds;
tests marked ``upstream``, ``server`` or ``gpu`` need SGLang itself and are left to the
second pass. ``SEMI_PD_SOAK=1`` lets tests that use ``soak_factor`` run for long.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sglang.semi_pd.memory.block_table import BlockTable

REPOSITORY = Path(__file__).resolve().parents[2]
HEAVY_MARKERS = ("upstream", "server", "gpu")
IS_LIGHT = os.environ.get("SEMI_PD_LIGHT") == "1"


def _stand_in_for_sglang() -> None:
    stand_in = ModuleType("sglang")
    stand_in.__path__ = [str(REPOSITORY / "python" / "sglang")]
    sys.modules["sglang"] = stand_in
    sys.path.insert(0, str(REPOSITORY / "python"))


if IS_LIGHT:
    _stand_in_for_sglang()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In the light pass, skip what needs SGLang itself."""
    if not IS_LIGHT:
        return
    needs_sglang = pytest.mark.skip(reason="needs SGLang itself; SEMI_PD_LIGHT=1")
    for item in items:
        if any(item.get_closest_marker(marker) for marker in HEAVY_MARKERS):
            item.add_marker(needs_sglang)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def soak_factor() -> int:
    """How many times longer than usual a stress test should run."""
    return 50 if os.environ.get("SEMI_PD_SOAK") == "1" else 1


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny Llama with its tokenizer."""
    return _make_model(tmp_path_factory, "llama")


@pytest.fixture(scope="session", params=["qwen2", "qwen2_moe", "deepseek_v2"])
def other_tiny_model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Folder of a tiny model of another family, each in turn."""
    return _make_model(tmp_path_factory, request.param)


def _make_model(tmp_path_factory: pytest.TempPathFactory, arch: str) -> Path:
    from tiny_models import make_tiny_model

    out = tmp_path_factory.mktemp("models") / f"tiny-{arch}"
    return make_tiny_model(out, arch=arch)


@pytest.fixture
def table() -> Iterator[BlockTable]:
    """A block table without workers, in order when the test ends."""
    from sglang.semi_pd.memory.block_table import BlockTable
    from table_processes import PAGES, ROWS, assert_in_order

    made = BlockTable.create(num_pages=PAGES, num_rows=ROWS, page_size=16)
    yield made
    assert_in_order(made)
    made.close()


@pytest.fixture
def prefill(table: BlockTable) -> BlockTable:
    """The table as its prefill worker has it."""
    return _worker(table, "prefill")


@pytest.fixture
def decode(table: BlockTable) -> BlockTable:
    """The table as its decode worker has it."""
    return _worker(table, "decode")


def _worker(table: BlockTable, role: str) -> BlockTable:
    from sglang.semi_pd.utils import InstanceRole
    from table_processes import worker

    return worker(table, InstanceRole(role))
