# SPDX-License-Identifier: Apache-2.0
"""Where a loaded model's tensors are, as the resident tells it to the workers."""

from __future__ import annotations

import msgspec
from sglang.semi_pd.memory.memory_arena import TensorRef

PlainValue = bool | int | float | str | None


class ModuleImage(msgspec.Struct, frozen=True):
    """What one module of the tree holds, by attribute name.

    ``marks`` is what is written on its parameters beside their values.
    """

    path: str
    parameters: dict[str, TensorRef]
    buffers: dict[str, TensorRef]
    attributes: dict[str, TensorRef]
    plain: dict[str, PlainValue]
    marks: dict[str, dict[str, PlainValue]]


class ModelImage(msgspec.Struct, frozen=True):
    """Every module of a model, in the order of ``named_modules()``."""

    modules: list[ModuleImage]
