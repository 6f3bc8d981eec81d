# SPDX-License-Identifier: Apache-2.0
"""How much of a model is computed before a graph of another size is captured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sglang.semi_pd.workers.warm_ups import few_layers


class Noting(torch.nn.Module):
    """A layer that notes that it was computed."""

    def __init__(self, place: int, computed: list[int]) -> None:
        super().__init__()
        self._place, self._computed = place, computed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._computed.append(self._place)
        return x


class Sparse(Noting):
    """Another kind of layer."""


class Stack(torch.nn.Module):
    """Layers as SGLang's models have them, from ``start_layer`` to ``end_layer``."""

    def __init__(self, layers: list[Noting]) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)
        self.start_layer, self.end_layer = 0, len(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for place in range(self.start_layer, self.end_layer):
            x = self.layers[place](x)
        return x


class Model(torch.nn.Module):
    def __init__(self, *kinds: type[Noting]) -> None:
        super().__init__()
        self.computed: list[int] = []
        layers = [kind(place, self.computed) for place, kind in enumerate(kinds)]
        self.model = Stack(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


@pytest.mark.parametrize(
    ("kinds", "computed"),
    [
        ([Noting] * 8, [0]),
        ([Noting, Sparse, Sparse, Sparse], [0, 1]),
        ([Noting, Noting, Sparse, Noting], [0, 1, 2]),
    ],
)
def test_every_kind_of_layer_is_met_once(kinds: list[Any], computed: list[int]) -> None:
    model = Model(*kinds)
    with few_layers(model):
        model(torch.zeros(1))
    assert model.computed == computed
    model.computed.clear()
    model(torch.zeros(1))
    assert model.computed == list(range(len(kinds)))


def test_a_kind_is_also_how_it_is_quantised() -> None:
    model = Model(Noting, Noting, Noting)
    vars(model.model.layers[2])["quant_method"] = object()
    with few_layers(model):
        model(torch.zeros(1))
    assert model.computed == [0, 1, 2]


def test_a_failed_forward_leaves_the_model_whole() -> None:
    model = Model(Noting, Noting)
    with pytest.raises(RuntimeError), few_layers(model):
        raise RuntimeError
    assert model.model.end_layer == 2


@pytest.mark.parametrize("model", [None, torch.nn.Linear(1, 1)])
def test_what_does_not_say_its_layers_is_left_alone(model: Any) -> None:
    with few_layers(model):
        assert not hasattr(model, "model")


@pytest.mark.upstream
def test_sglangs_models_say_their_layers() -> None:
    """What ``few_layers`` relies on; without it warm-ups take longer, no more."""
    import inspect

    from sglang.srt.models import deepseek_v2, llama, qwen2, qwen2_moe

    for module in (llama, qwen2, qwen2_moe, deepseek_v2):
        source = inspect.getsource(module)
        assert "self.layers, self.start_layer, self.end_layer = make_layers(" in source
        assert "range(self.start_layer, self.end_layer)" in source
