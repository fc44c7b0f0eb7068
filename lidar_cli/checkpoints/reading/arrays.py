"""Reads embeddings from tensors in a file of torch.save or safetensors."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lidar_cli.checkpoints.reading.lazy_tensor import ELEMENT_TYPES, ITEMSIZE, LazyTensor
from lidar_cli.checkpoints.reading.read import describe, read_file
from lidar_cli.errors import CheckpointError, InputError
from lidar_cli.features.arrays import ArrayForm, select_embeddings, stored_at
from lidar_cli.features.embeddings import Embeddings, StoredArray, with_names

FLOATS = {  # torch's name -> numpy's dtype; int16 for bfloat16, which numpy lacks
    one.name: np.dtype(f"<{one.numpy or 'i2'}")
    for one in ELEMENT_TYPES
    if one.name in ("float64", "float32", "float16", "bfloat16")
}


def read_tensors(path: Path, form: ArrayForm) -> Embeddings:
    """The embeddings in a tensor, alone or in a dict.

    Raises InputError if the file cannot be read, or the tensor's shape or type is wrong.
    """
    try:
        tree = read_file(path).tree
        tensors = tensors_of(tree, path)
    except CheckpointError as error:
        reason = str(error).removeprefix(f"{path}: ").removeprefix(f"{path} ")
        raise InputError(f"{path}: cannot be read as .npz or .pt: {reason}") from error
    stored = {name: _stored(tensor) for name, tensor in tensors.items()}
    embeddings = select_embeddings(path, stored, form)
    tensor = tensors[embeddings.layer]
    embeddings = with_names(embeddings, lambda name: _values(tree, name))
    return embeddings if _is_contiguous(tensor) else replace(embeddings, in_memory=tensor.nbytes)


def _values(tree: Any, name: str) -> list[Any] | None:
    """The list or the tensor of whole numbers `name` in a dict; None if there is none."""
    value = tree.get(name) if isinstance(tree, dict) else None
    if isinstance(value, LazyTensor) and len(value.shape) == 1 and "int" in value.dtype:
        return value.materialise().tolist()
    if isinstance(value, list) and all(type(one) in (str, int) for one in value):
        return value
    return None


def tensors_of(tree: Any, path: Path) -> dict[str, LazyTensor]:
    """Tensors of floating-point numbers by name. Raises CheckpointError for other content."""
    tree = {path.stem: tree} if isinstance(tree, LazyTensor) else tree
    if not isinstance(tree, dict):
        raise CheckpointError(f"holds {describe(tree)}; expected a tensor or a dict of tensors")
    return {
        str(name): value
        for name, value in tree.items()
        if isinstance(value, LazyTensor) and value.dtype in FLOATS
        if not value.problem and value.storage is not None
    }


def _stored(tensor: LazyTensor) -> StoredArray:
    """A tensor, read in chunks by offset if its elements are contiguous, else all at once."""
    item = ITEMSIZE[tensor.dtype]
    storage = tensor.storage
    if storage is not None and _is_contiguous(tensor):
        offset = storage.source.start + storage.first + item * tensor.offset
        as_type = tensor.dtype if tensor.dtype == "bfloat16" else None
        return stored_at(storage.source.path, offset, tensor.shape, FLOATS[tensor.dtype], as_type)
    materialise = cache(tensor.materialise)
    return StoredArray(tensor.shape, item, lambda start, stop: materialise()[start:stop])


def _is_contiguous(tensor: LazyTensor) -> bool:
    """Whether the elements are in the file, in row-major order, with no bytes between them."""
    if tensor.storage is None or tensor.storage.source.data is not None or tensor.bits:
        return False
    step = 1
    for length, stride in zip(reversed(tensor.shape), reversed(tensor.stride), strict=True):
        if length != 1 and stride != step:
            return False
        step *= length
    return True
