"""Reads embeddings from tensors in a file of torch.save or safetensors."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lidar_cli.checkpoints.reading.lazy_tensor import ELEMENT_TYPES, ITEMSIZE, LazyTensor
from lidar_cli.checkpoints.reading.read import describe, read_file
from lidar_cli.errors import CheckpointError, InputError
from lidar_cli.features.arrays import select_embeddings, stored_at
from lidar_cli.features.embeddings import Embeddings, StoredArray

FLOATS = {  # torch's name -> numpy's dtype; int16 for bfloat16, which numpy lacks
    one.name: np.dtype(f"<{one.numpy or 'i2'}")
    for one in ELEMENT_TYPES
    if one.name in ("float64", "float32", "float16", "bfloat16")
}


def read_tensors(path: Path, dataset: str | None, views_per_sample: int | None) -> Embeddings:
    """The embeddings in a tensor, alone or in a dict.

    dataset: name of the tensor, needed if the file holds several.
    views_per_sample: q, for a tensor (n*q, d).
    Raises InputError if the file cannot be read, or the tensor's shape or type is wrong.
    """
    try:
        tensors = tensors_of(read_file(path).tree, path)
    except CheckpointError as error:
        reason = str(error).removeprefix(f"{path}: ").removeprefix(f"{path} ")
        raise InputError(f"{path}: cannot be read as .npz or .pt: {reason}") from error
    stored = {name: _stored(tensor) for name, tensor in tensors.items()}
    embeddings = select_embeddings(path, stored, dataset, views_per_sample)
    tensor = tensors[embeddings.layer]
    return embeddings if _is_contiguous(tensor) else replace(embeddings, in_memory=tensor.nbytes)


def read_stored_ids(path: Path) -> np.ndarray | list[str] | None:
    """Ids [N] under the key `ids` of a file of torch.save or safetensors; None if it has none.

    A tensor of integers, or a list of texts or integers. Raises InputError for other content.
    """
    try:
        tree = read_file(path).tree
    except CheckpointError as error:
        raise InputError(str(error)) from error
    ids = tree.get("ids") if isinstance(tree, dict) else None
    if ids is None:
        return None
    if isinstance(ids, LazyTensor) and "int" in ids.dtype and len(ids.shape) == 1:
        return ids.materialise().numpy()
    if isinstance(ids, (list, tuple)) and all(type(one) in (str, int) for one in ids):
        return [str(one) for one in ids]
    raise InputError(
        f"{path}: ids are {describe(ids)}; expected a tensor [N] of integers, or a list of texts"
    )


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
        as_type = torch.bfloat16 if tensor.dtype == "bfloat16" else None
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
