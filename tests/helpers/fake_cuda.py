"""Runs code for a GPU without one, and refuses each operation that would wait for the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lidar_cli.checkpoints.open import open_checkpoint
from lidar_cli.data.open import open_samples
from lidar_cli.extraction.engine import Embedded, EmbeddingModel, ViewSource
from lidar_cli.extraction.plan import make_plan, set_image_size
from lidar_cli.extraction.view_cache import CacheLimits, ViewCache
from lidar_cli.runtime.prefetch import copy_to_device
from lidar_cli.settings import ExtractSettings

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
aten = torch.ops.aten


class Waits(Exception):
    """An operation for which the host waits until the device has done all its work."""


class RefuseWaits(TorchDispatchMode):
    """Raises Waits for a copy between host and device that is not asynchronous.

    Asynchronous is a copy with non_blocking=True from page-locked memory to the device. Without a
    GPU no memory can be page-locked, so that the memory which should be is recorded instead.
    copies: bytes of each copy to the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[int] = []
        self._page_locked: list[torch.UntypedStorage] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is aten._pin_memory.default:
            self._page_locked.append(args[0].untyped_storage())
            return args[0]
        if func.overloadpacket is aten.to:  # as a whole in inference mode
            with self:
                return func.decompose(*args, **kwargs)
        page_locked = bool(kwargs.pop("pin_memory", False))
        out = func(*args, **kwargs)
        if page_locked:
            self._page_locked.append(out.untyped_storage())
        arrays = [one for one in tree_leaves((args, kwargs, out)) if is_array(one)]
        if len({one.device.type for one in arrays}) > 1:
            self._check_copy(func, args, kwargs, out)
        return out

    def _check_copy(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> None:
        if func is aten._to_copy.default:
            source, target, asynchronous = args[0], out, kwargs.get("non_blocking", False)
        elif func is aten.copy_.default:
            target, source, asynchronous = (*args, kwargs.get("non_blocking", False))[:3]
        else:
            raise Waits(f"{func} of tensors on two devices")
        memory = source.untyped_storage()._cdata
        if all(memory != one._cdata for one in self._page_locked) or target.device.type != "cuda":
            raise Waits(f"{func} to {target.device} from memory that is not page-locked")
        if not asynchronous:
            raise Waits(f"{func} without non_blocking")
        self.copies.append(source.nbytes)


def is_array(one: Any) -> bool:
    """Whether a kernel needs a copy of it; a number on the host is one of its arguments."""
    return isinstance(one, Tensor) and (one.device.type != "cpu" or one.dim() > 0)


@contextmanager
def fake_cuda() -> Iterator[RefuseWaits]:
    """A context in which tensors have shapes and devices, `cuda` among them, but no numbers.

    Raises Waits in it, and torch's own error for what depends on a tensor's numbers.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), RefuseWaits() as mode:
        yield mode


def embed_on_fake_cuda(
    checkpoint: Path, images: Path, cached: bool = False, **settings: Any
) -> tuple[Embedded, list[int]]:
    """Embeddings of a batch on a fake GPU, and the bytes of each copy to it; see `one_batch`."""
    model, source, decoded = one_batch(checkpoint, images, CPU, cached, **settings)
    with fake_cuda() as mode:
        for module in model.embedder.modules.values():
            move(module)
        model, source = replace(model, device=CUDA), replace(source, device=CUDA)
        return embed(model, source, decoded), mode.copies


def one_batch(
    checkpoint: Path, images: Path, device: torch.device, cached: bool = False, **settings: Any
) -> tuple[EmbeddingModel, ViewSource, dict[int, Tensor]]:
    """What embeds all samples as one batch: model, source of views, decoded image by sample.

    cached: whether all views are read from a cache in main memory; then no image is decoded.
    """
    parsed = ExtractSettings(data=str(images), **settings)
    samples, embedder = open_samples(parsed), open_checkpoint(checkpoint, parsed).to(device)
    plan = make_plan(embedder.description, str(checkpoint), "", samples, parsed, device)
    set_image_size(embedder, plan)
    numbers, side, cache = range(plan.layout.n_clean), plan.views.image_size, None
    decoded = {} if cached else {i: samples.decode(i) for i in numbers}
    if cached:
        cache = ViewCache(CacheLimits(0, 2**30, 0), device, checkpoint.parent)
        for i in numbers:
            cache.add(i, torch.zeros(plan.layout.n_views + 1, 3, side, side))
    source = ViewSource(plan, samples, device, embedder.memory_format, cache=cache)
    return EmbeddingModel(plan, embedder, device), source, decoded


def embed(model: EmbeddingModel, source: ViewSource, decoded: dict[int, Tensor]) -> Embedded:
    """The embeddings of one batch, from decoded images to the model's outputs."""
    on_device = copy_to_device(list(decoded.values()), model.device)
    count = model.plan.layout.n_clean
    batch = source._assemble(0, count, count, dict(zip(decoded, on_device, strict=True)))
    return model.forward(batch)


def move(module: torch.nn.Module) -> None:
    """Replace the weights by those of a fake GPU."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    form = (tensor.shape, tensor.stride())
                    empty = torch.empty_strided(*form, dtype=tensor.dtype, device=CUDA)
                    tensors[name] = torch.nn.Parameter(empty, requires_grad=False)
