# SPDX-License-Identifier: Apache-2.0
"""Answers in the GPU's place: right ones, for as long as imports last."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace

import pytest
from sglang.semi_pd.server import gpu_answers

H200 = gpu_answers.GPU(
    name="NVIDIA H200",
    total_memory=150_000_000_000,
    attributes={75: 9, 76: 0, 16: 132, 10: 32},
    count=2,
)


@pytest.fixture
def torch_like(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A ``torch.cuda`` whose functions ask a GPU, on a host that has one."""

    def asks_the_gpu(*args: object) -> str:
        return "asked the GPU"

    names = gpu_answers._torch_answers(H200)
    cuda = SimpleNamespace(**dict.fromkeys(names, asks_the_gpu))
    torch = ModuleType("torch")
    torch.cuda = cuda  # type: ignore[attr-defined]
    torch._C = SimpleNamespace(_get_accelerator=asks_the_gpu)  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "torch", torch)
    monkeypatch.setattr(gpu_answers, "CONTROL_DEVICE", "/dev/null")
    monkeypatch.setattr(gpu_answers, "_ask_in_a_child", lambda: H200)
    return cuda


def test_what_imports_ask_is_answered(torch_like: SimpleNamespace) -> None:
    with gpu_answers.instead_of_cuda():
        assert torch_like.is_available() is True
        assert torch_like.device_count() == 2
        assert torch_like.get_device_capability(0) == (9, 0)
        properties = torch_like.get_device_properties("cuda:0")
        assert (properties.major, properties.multi_processor_count) == (9, 132)
        with pytest.raises(AttributeError):
            _ = properties.L2_cache_size  # the driver did not say


def test_who_kept_an_answering_function_asks_the_gpu_later(
    torch_like: SimpleNamespace,
) -> None:
    with gpu_answers.instead_of_cuda():
        kept = torch_like.get_device_name
        assert kept() == "NVIDIA H200"
    assert kept() == torch_like.get_device_name() == "asked the GPU"


def test_without_a_driver_nothing_is_changed(
    torch_like: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_answers, "CONTROL_DEVICE", "/nowhere")
    with gpu_answers.instead_of_cuda():
        assert torch_like.is_available() == "asked the GPU"


def test_why_the_gpu_could_not_be_asked_is_told(monkeypatch: pytest.MonkeyPatch):
    def refuse() -> None:
        raise OSError("cuInit gave error 999")

    monkeypatch.setattr(gpu_answers, "_ask", refuse)
    with pytest.raises(OSError, match="cuInit gave error 999"):
        gpu_answers._ask_in_a_child()


def test_a_host_without_cuda_has_no_gpu_open() -> None:
    assert gpu_answers.open_gpus() == ()
