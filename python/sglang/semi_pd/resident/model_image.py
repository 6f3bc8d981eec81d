# SPDX-License-Identifier: Apache-2.0
"""A loaded model as tensors in shared memory, and the way back to a module tree.

The resident loads the model with SGLang's own loader and takes its image; a worker
builds the same module tree without memory (on torch's meta device) and fills it from
the image. Everything that loading left on the modules is carried: parameters, buffers,
tensors kept as plain attributes (the absorbed ``w_kc`` and ``w_vc`` of multi-head
latent attention are such), and the plain values that post-processing of weights sets,
there or on a parameter. What it leaves elsewhere is not; forms of quantisation that do
so are refused (``launch.model_family``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from sglang.semi_pd.errors import UpstreamMismatchError
from sglang.semi_pd.memory.memory_arena import ArenaBuilder, TensorRef, dtype_name
from sglang.semi_pd.resident.model_manifest import ModelImage, ModuleImage, PlainValue
from sglang.srt.model_loader.loader import (
    BaseModelLoader,
    _get_quantization_config,
    _initialize_model,
)
from sglang.srt.model_loader.utils import set_default_torch_dtype
from sglang.srt.platforms import current_platform
from torch import nn

logger = logging.getLogger(__name__)

TensorResolver = Callable[[TensorRef], torch.Tensor]
"""Turns a reference into a tensor of this process."""

GROUP_BYTES = 1 << 30
"""Weights moved at a time: the extra memory that moving them takes."""


def take_image(model: nn.Module, builder: ArenaBuilder) -> ModelImage:
    """Move the model's tensors into arenas and describe where they are.

    The model is unusable afterwards: its memory is freed as it is copied, so that the
    peak is the model plus one group of tensors, not two models.

    Raises:
        UpstreamMismatchError: there is a tensor that a worker could not be given.
    """
    modules = list(model.named_modules())
    _warn_of_other_devices(modules)
    for path, module in modules:
        _require_no_tensor(path, getattr(module, "quant_method", None))
    placer = _StoragePlacer(builder)
    placer.move(tensor for _, module in modules for _, tensor in _tensors_of(module))
    return ModelImage([_image_of(path, module, placer) for path, module in modules])


def fill_from_image(
    model: nn.Module, image: ModelImage, tensors: TensorResolver
) -> None:
    """Give a model built on the meta device the tensors of ``image``.

    Raises:
        UpstreamMismatchError: the trees differ, or a tensor is left without memory.
    """
    targets = dict(model.named_modules())
    for source in image.modules:
        module = targets.get(source.path)
        if module is None:
            raise _mismatch(f"module {source.path!r} exists in the resident only")
        _fill_module(module, source, tensors)
    for path, module in targets.items():
        for name, tensor in _tensors_of(module):
            if tensor.is_meta:
                raise _mismatch(f"{path}.{name} was not exported by the resident")


class SharedModelLoader(BaseModelLoader):
    """SGLang model loader of a worker: nothing is read from disk, nothing is copied."""

    def __init__(
        self, load_config: Any, image: ModelImage, tensors: TensorResolver
    ) -> None:
        super().__init__(load_config)
        self._image, self._tensors = image, tensors

    def download_model(self, model_config: Any) -> None:
        """The resident has it already."""

    def load_model(self, *, model_config: Any, device_config: Any) -> nn.Module:
        quantization = _get_quantization_config(model_config, self.load_config)
        with set_default_torch_dtype(model_config.dtype), torch.device("meta"):
            model = _initialize_model(model_config, self.load_config, quantization)
        fill_from_image(model, self._image, self._tensors)
        return model.eval()


class _StoragePlacer:
    """Copies each storage once, however many tensors view it (tied weights, views)."""

    def __init__(self, builder: ArenaBuilder) -> None:
        self._builder = builder
        self._placed: dict[int, TensorRef] = {}

    def move(self, tensors: Iterable[torch.Tensor]) -> None:
        """Copy what the tensors hold, group by group, freeing the original of each."""
        group: list[torch.UntypedStorage] = []
        for storage in _distinct_storages(tensors):
            group.append(storage)
            if sum(s.nbytes() for s in group) >= GROUP_BYTES:
                self._move_group(group)
                group = []
        self._move_group(group)

    def ref(self, tensor: torch.Tensor) -> TensorRef:
        """Where a tensor is now; its storage has been moved."""
        base = self._placed[_key(tensor.untyped_storage())]
        offset = base.offset + int(tensor.storage_offset()) * tensor.element_size()
        shape, stride = tuple(tensor.shape), tuple(tensor.stride())
        return TensorRef(base.arena, offset, dtype_name(tensor.dtype), shape, stride)

    def _move_group(self, group: list[torch.UntypedStorage]) -> None:
        refs = self._builder.place_together([_as_bytes(s) for s in group])
        for storage, ref in zip(group, refs, strict=True):
            self._placed[_key(storage)] = ref
        current_platform.synchronize()
        for storage in group:
            storage.resize_(0)
        current_platform.empty_cache()


def _distinct_storages(
    tensors: Iterable[torch.Tensor],
) -> Iterator[torch.UntypedStorage]:
    seen: set[int] = set()
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if _key(storage) not in seen:
            seen.add(_key(storage))
            yield storage


def _key(storage: torch.UntypedStorage) -> int:
    """What stays the same of a storage when its memory is freed."""
    return storage._cdata


def _as_bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _warn_of_other_devices(modules: list[tuple[str, nn.Module]]) -> None:
    """A reference does not say where: what is elsewhere comes back on the GPU."""
    first: dict[torch.device, str] = {}
    for path, module in modules:
        for name, tensor in _tensors_of(module):
            first.setdefault(tensor.device, f"{path}.{name}")
    if len(first) > 1:
        places = ", ".join(f"{name} on {device}" for device, name in first.items())
        logger.warning("The workers have all tensors on one device: %s", places)


def _require_no_tensor(path: str, quant_method: Any) -> None:
    """A kernel's own tensors are out of sight of who takes a module's."""
    for name, value in getattr(quant_method, "__dict__", {}).items():
        if isinstance(value, torch.Tensor):
            kind = type(quant_method).__name__
            raise _mismatch(f"{kind} of {path} keeps a tensor of its own, {name}")


def _image_of(path: str, module: nn.Module, placer: _StoragePlacer) -> ModuleImage:
    return ModuleImage(
        path=path,
        parameters=_refs(module._parameters, placer),
        buffers=_refs(module._buffers, placer),
        attributes=_refs(module.__dict__, placer),
        plain=_plain_values(module),
        marks={
            name: marks
            for name, parameter in module._parameters.items()
            if parameter is not None and (marks := _plain_values(parameter))
        },
    )


def _refs(holder: dict[str, Any], placer: _StoragePlacer) -> dict[str, TensorRef]:
    return {
        name: placer.ref(value)
        for name, value in holder.items()
        if isinstance(value, torch.Tensor)
    }


def _plain_values(holder: nn.Module | nn.Parameter) -> dict[str, PlainValue]:
    return {
        name: value
        for name, value in holder.__dict__.items()
        if not name.startswith("_")
        and (value is None or type(value) in (bool, int, float, str))
    }


def _fill_module(
    module: nn.Module, source: ModuleImage, tensors: TensorResolver
) -> None:
    for name, ref in source.parameters.items():
        replacement = nn.Parameter(tensors(ref), requires_grad=False)
        current = module._parameters.get(name)
        if current is not None:
            replacement.__dict__.update(current.__dict__)
        replacement.__dict__.update(source.marks.get(name, {}))
        module.__dict__.pop(name, None)
        module._parameters[name] = replacement
    for name, ref in source.buffers.items():
        module._parameters.pop(name, None)
        module._buffers[name] = tensors(ref)
    for name, ref in source.attributes.items():
        module.__dict__[name] = tensors(ref)
    for name, value in source.plain.items():
        if value is not None:
            module.__dict__[name] = value
        elif not hasattr(module, name):  # may be what only a worker has
            module.__dict__[name] = None


def _tensors_of(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for holder in (module._parameters, module._buffers, module.__dict__):
        for name, value in holder.items():
            if isinstance(value, torch.Tensor):
                yield name, value


def _mismatch(why: str) -> UpstreamMismatchError:
    return UpstreamMismatchError(
        "The model cannot be shared between the workers",
        why=why,
        mend="serve it without Semi-PD, and report the model's name",
    )
