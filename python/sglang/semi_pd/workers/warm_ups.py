# SPDX-License-Identifier: Apache-2.0
"""What SGLang computes before it captures a graph, made cheap for others' sake.

SGLang computes each size twice: kernels are then loaded, and done is what a process
does once. Here the first size gets both, at the lowest priority. Every other size gets
one forward, through as many layers as it takes to have met every kind: their kernels
are the same ones again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

WARM_UPS = 2
"""Forwards that SGLang computes before it captures one."""


class WarmUps:
    """A forward that SGLang computes twice, then captures.

    Args:
        model: that it goes through.
        low: the stream for what is not captured.
        is_first: whether nothing was captured before.
    """

    def __init__(
        self,
        forward: Callable[[], Any],
        model: torch.nn.Module | None,
        low: torch.cuda.Stream,
        *,
        is_first: bool,
    ) -> None:
        self._forward, self._model, self._low = forward, model, low
        self._is_first = is_first
        self._calls = 0
        self._output: Any = None

    def __call__(self) -> Any:
        self._calls += 1
        if self._calls > WARM_UPS:
            self._output = None
            return self._forward()
        if self._is_first:
            self._output = self._on_low()
        elif self._calls == 1:
            with few_layers(self._model):
                self._output = self._on_low()
        return self._output

    def _on_low(self) -> Any:
        current = torch.cuda.current_stream()
        self._low.wait_stream(current)
        with torch.cuda.stream(self._low):
            output = self._forward()
        current.wait_stream(self._low)
        return output


@contextmanager
def few_layers(model: torch.nn.Module | None) -> Iterator[None]:
    """Meanwhile a forward ends after its first layers, when it has met every kind.

    All layers stay where SGLang's models do not say, as those that may be divided into
    pipeline stages do, which layers they compute.
    """
    stack: Any = getattr(model, "model", None)
    end = getattr(stack, "end_layer", None)
    if not isinstance(end, int) or "end_layer" not in vars(stack):
        yield
        return
    stack.end_layer = stack.start_layer + _varied(stack.layers[stack.start_layer : end])
    try:
        yield
    finally:
        stack.end_layer = end


def _varied(layers: torch.nn.ModuleList) -> int:
    """How many of the first layers have every kind among them."""
    kinds = [tuple(map(_kind, layer.modules())) for layer in layers]
    return max((kinds.index(kind) + 1 for kind in set(kinds)), default=0)


def _kind(part: torch.nn.Module) -> tuple[type, type]:
    # A checkpoint may leave some layers unquantised.
    return type(part), type(getattr(part, "quant_method", None))
