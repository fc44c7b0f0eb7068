"""Fills a module with the tensors of a state dict, which must have exactly its names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from lidar_cli.checkpoints.reading.lazy_tensor import LazyTensor, Weight, is_tensor, materialised
from lidar_cli.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor, nn

MAX_REUSE = 4  # how many tensors may share each byte of a file, on average, as tied weights do
UNCHECKED_BYTES = 2**26  # bytes of tensors that may exceed that
LONGEST_NAME = 120  # characters of a name in an error
COUNTER = "num_batches_tracked"  # BatchNorm's, unused in eval mode, absent from old files


def fill(module: nn.Module, tensors: Mapping[str, Weight], origin: str) -> None:
    """Set all parameters and buffers of a module, in float32, and put it in eval mode.

    tensors: name in the module's state dict -> tensor. They are copied, so that the file may change
    afterwards. origin: the file and module that an error names.
    Raises CheckpointError for missing or surplus names, other shapes, and weights that are not
    finite floating-point numbers. Every parameter is replaced.
    """
    import torch

    present = {n: t for n, t in module.state_dict().items() if is_tensor(t)}
    expected = shapes_of(present)
    compare(expected, shapes_of(tensors), origin)
    _check_size(tensors, origin)
    ready = {
        name: _checked_copy(name, tensor, present[name].is_floating_point(), origin)
        for name, tensor in tensors.items()
    }
    for name in expected.keys() - ready.keys():  # counters; compare() raises for others
        ready[name] = torch.zeros((), dtype=torch.int64)
    try:
        # A module on the meta device has no memory: the copies themselves become its tensors.
        module.load_state_dict(ready, strict=True, assign=any(t.is_meta for t in present.values()))
    except Exception as error:  # a user's module may have hooks that raise anything
        reason = str(error).strip().split("\n")[-1].strip()
        raise CheckpointError(
            f"{origin}: the module refuses the weights: {reason}", code="module-refuses"
        ) from error
    module.eval().requires_grad_(False)


def compare(
    expected: Mapping[str, tuple[int, ...]], present: Mapping[str, tuple[int, ...]], origin: str
) -> None:
    """Raise CheckpointError unless both have the same names and shapes; counters may be missing."""
    missing = [name for name in expected if name not in present and not is_counter(name)]
    if missing:
        raise CheckpointError(
            f"{origin}: {first_few(missing)} missing of {len(expected)} tensors; expected all of "
            "them; name the architecture with --arch or your own code with --model",
            code="missing-tensors",
        )
    surplus = [name for name in present if name not in expected]
    if surplus:
        raise CheckpointError(
            f"{origin}: {first_few(surplus)} have no place among {len(expected)} expected tensors; "
            "name your own code with --model",
            code="surplus-tensors",
        )
    for name, shape in present.items():
        if shape != expected[name]:
            raise CheckpointError(
                f"{origin}: {name} has shape {list(shape)}, expected {list(expected[name])}; "
                "name the architecture with --arch or your own code with --model",
                code="other-shapes",
            )


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter and buffer that a state dict of the module holds."""
    return shapes_of({n: t for n, t in module.state_dict().items() if is_tensor(t)})


def shapes_of(tensors: Mapping[str, Weight]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def is_counter(name: str) -> bool:
    """Whether this is the name of BatchNorm's counter of batches."""
    return name.rpartition(".")[2] == COUNTER


def size(tensor: Weight) -> int:
    """The number of elements of a tensor."""
    return math.prod(tensor.shape)


def parts_of(tensor: Weight) -> tuple[Weight, ...]:
    """The tensors of the file in a joined tensor, such as q, k and v; else the tensor itself."""
    parts: tuple[Weight, ...] = getattr(tensor, "parts", (tensor,))
    return parts


def _check_size(tensors: Mapping[str, Weight], origin: str) -> None:
    """Raise CheckpointError if many tensors share the same few bytes, before memory is taken."""
    parts = [part for tensor in tensors.values() for part in parts_of(tensor)]
    lazy = [t for t in parts if isinstance(t, LazyTensor) and t.storage is not None]
    sources = {t.storage.source: t.storage.source.nbytes for t in lazy if t.storage is not None}
    available, wanted = sum(sources.values()), sum(t.nbytes for t in lazy)
    if wanted > MAX_REUSE * available + UNCHECKED_BYTES:
        raise CheckpointError(
            f"{origin}: the tensors have {wanted} bytes over {available} of the file; "
            "expected tensors of their own; save the state dict of one model again",
            code="shared-bytes",
        )


def _checked_copy(name: str, stored: Weight, is_weight: bool, origin: str) -> Tensor:
    """A float32 copy of a finite weight; an exact copy of another tensor, such as an index."""
    import torch

    refusal = CheckpointError(
        f"{origin}: {name} is a sparse, quantised or empty tensor; expected plain numbers; "
        "save the dequantised state dict",
        code="not-plain-numbers",
    )
    if isinstance(stored, LazyTensor) and stored.problem:
        raise refusal
    tensor = materialised(stored)
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise refusal
    if not is_weight:
        return tensor.clone()
    if not tensor.is_floating_point():
        raise CheckpointError(
            f"{origin}: {name} has type {str(tensor.dtype).removeprefix('torch.')}, "
            "expected floating-point numbers; save the dequantised state dict",
            code="not-floating-point",
        )
    copy = tensor.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    if not torch.isfinite(copy).all():
        raise CheckpointError(
            f"{origin}: {name} holds NaN or infinite values, as after a diverged run; "
            "choose an earlier checkpoint",
            code="not-finite",
        )
    return copy


def first_few(names: Iterable[str], shown: int = 3) -> str:
    """The first few names, on one line, and how many more there are."""
    names = [name if name.isprintable() else ascii(name) for name in names]
    names = [name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..." for name in names]
    text = ", ".join(names[:shown])
    return text if len(names) <= shown else f"{text} and {len(names) - shown} more"
