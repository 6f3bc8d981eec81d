# SPDX-License-Identifier: Apache-2.0
"""What loading leaves on a model's modules comes to a worker; what it leaves elsewhere
is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.semi_pd.errors import UpstreamMismatchError
from torch import nn

pytestmark = pytest.mark.upstream


class Layer(nn.Module):
    """As SGLang's layers are before their weights are loaded."""

    def __init__(self) -> None:
        super().__init__()
        weight: Any = nn.Parameter(torch.empty(4, 8), requires_grad=False)
        weight.input_dim = 1
        self.weight = weight
        self.stream = None


def loaded() -> Any:
    """A layer after loading: transposed, with a scale and what is said about it."""
    layer: Any = Layer()
    layer.weight = nn.Parameter(torch.arange(32.0).view(4, 8).t(), requires_grad=False)
    layer.weight_scale = nn.Parameter(torch.ones(8), requires_grad=False)
    layer.weight_scale.format_ue8m0 = True
    layer.absorbed = torch.full((2, 2), 7.0)
    layer.is_packed = True
    layer.input_scale = None
    return layer


def received(model: nn.Module) -> Any:
    """The same in a worker, of the resident's memory."""
    from sglang.semi_pd.memory.memory_arena import ArenaBuilder
    from sglang.semi_pd.resident.model_image import fill_from_image, take_image

    builder = ArenaBuilder(torch.device("cpu"))
    image = take_image(model, builder)
    with torch.device("meta"):
        worker: Any = Layer()
    worker.stream = "a worker's own"
    fill_from_image(worker, image, builder.tensor)
    return worker


def test_all_that_loading_left_on_a_module_is_carried() -> None:
    worker = received(loaded())
    assert torch.equal(worker.weight, torch.arange(32.0).view(4, 8).t())
    assert worker.weight.stride() == (1, 8)
    assert worker.weight.input_dim == 1
    assert torch.equal(worker.weight_scale, torch.ones(8))
    assert worker.weight_scale.format_ue8m0 is True
    assert torch.equal(worker.absorbed, torch.full((2, 2), 7.0))
    assert worker.is_packed is True
    assert worker.input_scale is None
    assert worker.stream == "a worker's own"


def test_a_tensor_on_another_device_is_told(caplog: pytest.LogCaptureFixture) -> None:
    layer = loaded()
    layer.elsewhere = torch.empty(1, device="meta")
    with pytest.raises(NotImplementedError, match="meta"):  # it has no value to carry
        received(layer)
    assert ".weight on cpu, .elsewhere on meta" in caplog.text


def test_a_tensor_that_a_kernel_keeps_is_refused() -> None:
    layer = loaded()
    layer.quant_method = SimpleNamespace(workspace=torch.empty(1))
    with pytest.raises(UpstreamMismatchError, match="a tensor of its own, workspace"):
        received(layer)
