# SPDX-License-Identifier: Apache-2.0
"""Where the platform for a CPU host stands aside: SGLang serves as without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.upstream


@pytest.fixture
def cpu_platform() -> Any:
    import torch
    from sglang.semi_pd.cpu import cpu_platform

    if torch.accelerator.is_available():
        pytest.skip("there is a GPU")
    return cpu_platform


def test_it_serves_where_there_is_nothing_else(
    cpu_platform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = f"{cpu_platform.__name__}.{cpu_platform.CpuHostPlatform.__name__}"
    assert cpu_platform.activate() == ours
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", "1")
    assert cpu_platform.activate() is None


@pytest.mark.parametrize("package", ["torch_npu", "habana_frameworks"])
def test_it_stands_aside_for_a_device_that_cuda_does_not_know(
    cpu_platform: Any, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert cpu_platform.activate() is None


def test_it_stands_aside_for_another_platform_unless_it_is_named(
    cpu_platform: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGLang would refuse to choose between the two."""
    installed = tmp_path / "other_device-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: other-device\n")
    (installed / "entry_points.txt").write_text(
        "[sglang.srt.platforms]\nother = other_device:activate\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert cpu_platform.activate() is None
    monkeypatch.setenv("SGLANG_PLATFORM", "semi_pd_cpu")
    assert cpu_platform.activate() is not None
