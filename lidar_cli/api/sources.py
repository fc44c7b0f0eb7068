"""What the functions take: paths, arrays, lists, tensors, and mappings of names to them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lidar_cli.errors import InputError, first_line
from lidar_cli.features.arrays import ArrayForm, as_embeddings
from lidar_cli.features.embeddings import Embeddings, StoredArray
from lidar_cli.features.schema import OWN_LAYER
from lidar_cli.settings import ArraySettings

ARRAYS = (np.ndarray, Tensor)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_sources(given: tuple[Any, ...], settings: ArraySettings) -> list[Path | Embeddings]:
    """The files and the embeddings in memory, in the order given.

    A list is one array of numbers, unless it lists paths or arrays. An array without a name is
    called `array`, of several `array 1` and so on.
    Raises InputError for something else, for another shape or type, or a name that is given twice.
    """
    form = ArrayForm(None, settings.views_per_sample, settings.axes)
    named = list(_named(given))
    unnamed = sum(name is None and not _is_path(source) for name, source in named)
    sources: list[Path | Embeddings] = []
    count = 0
    for name, source in named:
        if _is_path(source):
            sources.append(Path(source))
            continue
        count += name is None
        label = name or (f"array {count}" if unnamed > 1 else "array")
        sources.append(_embeddings(label, source, form))
    if not sources:
        raise InputError("nothing is given; expected a path or an array", code="nothing-given")
    names = [source.file for source in sources if isinstance(source, Embeddings)]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two arrays are called {name}; name each differently", code="names")
    return sources


def _named(given: tuple[Any, ...]) -> Iterator[tuple[str | None, Any]]:
    """Each path and array, with its name if it has one."""
    for one in given:
        if isinstance(one, Mapping):
            yield from ((str(name), source) for name, source in one.items())
        elif isinstance(one, (list, tuple)) and any(map(_is_source, one)):
            yield from ((None, item) for item in one)
        else:
            yield None, one


def _is_path(source: Any) -> bool:
    return isinstance(source, (str, os.PathLike))


def _is_source(item: Any) -> bool:
    return _is_path(item) or isinstance(item, ARRAYS)


def _embeddings(name: str, source: Any, form: ArrayForm) -> Embeddings:
    stored = _of_tensor(name, source) if isinstance(source, Tensor) else _of_numpy(name, source)
    return replace(as_embeddings(Path(name), OWN_LAYER, stored, form), file=name)


def _of_tensor(name: str, source: Tensor) -> StoredArray:
    array = source.detach()
    if array.dtype not in FLOATS or array.layout != torch.strided:
        raise _no_floats(name, str(array.dtype).removeprefix("torch."))
    return StoredArray(tuple(array.shape), array.element_size(), lambda a, b: array[a:b])


def _of_numpy(name: str, source: Any) -> StoredArray:
    """An array, of which only the samples that are read are copied: it may be a memory map."""
    try:
        array = source if isinstance(source, np.ndarray) else np.asarray(source, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{name}: {type(source).__name__}: {first_line(error)}; expected a path, or numbers "
            "[n, q, d] or [N, d] as an array, a list or a tensor",
            code="no-array",
        ) from error
    if array.dtype.kind != "f" or array.itemsize > 8:
        raise _no_floats(name, array.dtype.name)
    native = array.dtype.newbyteorder("=")
    return StoredArray(
        array.shape, array.itemsize, lambda a, b: torch.from_numpy(np.array(array[a:b], native))
    )


def _no_floats(name: str, kind: str) -> InputError:
    message = f"{name}: numbers are {kind}; expected float16, float32 or float64"
    return InputError(message, code="no-floats")
