"""Embeddings in other people's array files: `.npy`, `.npz`, `.pt`, `.safetensors`.

An array is (n, q, d); or (n*q, d) with q given, the views of a sample contiguous; or (N, d), rows
without views. `.npy` and `.safetensors` are read by offset, a chunk at a time; `.npz` and `.pt`
must be read whole. The format is told by the file's first bytes, not by its name.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lidar_cli.embeddings import Embeddings, Stored
from lidar_cli.errors import InputError, first_line, nearest
from lidar_cli.runtime.files import NotAFile, open_regular

_SAFETENSORS_TYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
# Bytes that an archive may unpack to, however small it is, and a byte of it, in any case.
HARMLESS, MOST_RATIO = 2**26, 200
_EXPECTED = "expected HDF5, .npy, .npz, .pt or .safetensors"


def read_array_file(path: Path, dataset: str | None, views_per_sample: int | None) -> Embeddings:
    """The embeddings in an array file.

    dataset: name of the array where the file holds several.
    views_per_sample: q, for an array (n*q, d).
    Raises InputError if the file is none of the formats, or the array's shape or type is wrong.
    """
    try:
        with open_regular(path) as file:
            head = file.read(16)
    except NotAFile as error:
        raise InputError(f"{path}: {error.strerror}; {_EXPECTED}") from error
    note = None
    if head.startswith(b"\x93NUMPY"):
        arrays = {path.stem: _npy(path)}
    elif head.startswith(b"PK") or head.startswith(b"\x80"):
        arrays = {name: _in_memory(tensor) for name, tensor in _read_whole(path).items()}
        size = path.stat().st_size
        note = f"{path}: this format is read whole, {size / 2**20:,.0f} MB in memory"
        note = note if size > 2**28 else None
    elif len(head) >= 9 and head[8:9] == b"{":
        arrays = _safetensors(path)
    else:
        raise InputError(f"{path}: not a format that is known here ({_EXPECTED})")
    name = choose(path, {key: stored.shape for key, stored in arrays.items()}, dataset)
    return arrange(path, name, arrays[name], views_per_sample, note)


def choose(path: Path, shapes: Mapping[str, tuple[int, ...]], dataset: str | None) -> str:
    """The array that is asked for, or the only one of two or three axes.

    Raises InputError if there is no such array, or more than one and none was asked for.
    """
    if dataset is not None:
        if dataset not in shapes:
            raise InputError(f"{path}: no array {dataset!r}; {nearest(dataset, list(shapes))}")
        return dataset
    fitting = [name for name, shape in shapes.items() if len(shape) in (2, 3)]
    if len(fitting) == 1:
        return fitting[0]
    found = ", ".join(f"{name} {_times(shape)}" for name, shape in list(shapes.items())[:8])
    if not fitting:
        raise InputError(
            f"{path}: found {found or 'no array'}; expected one of (n, q, d) or (N, d)"
        )
    raise InputError(f"{path}: found several arrays, {found}; choose one with --dataset")


def arrange(
    path: Path, name: str, stored: Stored, views_per_sample: int | None, note: str | None = None
) -> Embeddings:
    """An array as views [n, q, d] or as rows [N, d].

    Raises InputError if its axes are not two or three, or q does not divide its rows.
    """
    shape, q = stored.shape, views_per_sample
    if len(shape) not in (2, 3) or 0 in shape:
        raise InputError(f"{path}: {name} is {_times(shape)}; expected (n, q, d) or (N, d)")
    if len(shape) == 3:
        if q is not None and q != shape[1]:
            raise InputError(
                f"{path}: {name} is {_times(shape)}, which is q = {shape[1]}, "
                f"not --views-per-sample {q}; leave the option out"
            )
        return Embeddings(str(path), name, stored, None, note=note)
    if q is None:
        return Embeddings(str(path), name, None, stored, clean_name="rows", note=note)
    rows, d = shape
    if rows % q:
        raise InputError(f"{path}: {rows} rows are not a multiple of --views-per-sample {q}")

    def read(start: int, stop: int) -> Tensor:
        return stored.read(start * q, stop * q).view(-1, q, d)

    views = Stored((rows // q, q, d), stored.item_size, read)
    return Embeddings(str(path), name, views, None, note=note)


def _npy(path: Path) -> Stored:
    with open_regular(path) as file:
        try:
            version = np.lib.format.read_magic(file)
            header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, fortran, dtype = header(file)
            if min(shape, default=0) < 0:
                raise ValueError(f"shape {shape}")
        except Exception as error:  # the parsers below numpy raise whatever they meet
            raise InputError(f"{path}: the .npy header cannot be read: {error}") from error
        offset = file.tell()
    if fortran and len(shape) > 1:
        raise InputError(
            f"{path}: stored column by column (Fortran order), so that samples are not contiguous; "
            "save np.ascontiguousarray(array) instead"
        )
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise InputError(f"{path}: numbers are {dtype}; expected float16, float32 or float64")
    row = math.prod(shape[1:])
    _check_size(path, offset + math.prod(shape) * dtype.itemsize)

    def read(start: int, stop: int) -> Tensor:
        row_bytes = row * dtype.itemsize
        data = _read_at(path, offset + start * row_bytes, (stop - start) * row_bytes)
        native = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="), copy=False)
        return torch.from_numpy(native).view(stop - start, *shape[1:])

    return Stored(tuple(shape), dtype.itemsize, read)


def _safetensors(path: Path) -> dict[str, Stored]:
    size = path.stat().st_size
    with open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise InputError(f"{path}: not a format that is known here ({_EXPECTED})")
        try:
            header = json.loads(file.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            arrays = {
                name: _safetensor(path, entry, base=8 + length)
                for name, entry in entries.items()
                if entry["dtype"] in _SAFETENSORS_TYPES
            }
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            OverflowError,
            RecursionError,
        ) as error:
            raise InputError(f"{path}: the safetensors header is damaged: {error}") from error
    return arrays


def _safetensor(path: Path, entry: Mapping[str, object], base: int) -> Stored:
    dtype = _SAFETENSORS_TYPES[str(entry["dtype"])]
    shape = tuple(int(length) for length in entry["shape"])  # type: ignore[attr-defined]
    begin, end = (int(offset) for offset in entry["data_offsets"])  # type: ignore[attr-defined]
    if min((*shape, begin), default=0) < 0 or end - begin != math.prod(shape) * dtype.itemsize:
        raise InputError(
            f"{path}: the safetensors header declares sizes that contradict each other"
        )
    _check_size(path, base + end)
    row = math.prod(shape[1:])

    def read(start: int, stop: int) -> Tensor:
        row_bytes = row * dtype.itemsize
        data = _read_at(path, base + begin + start * row_bytes, (stop - start) * row_bytes)
        return torch.frombuffer(data, dtype=dtype).view(stop - start, *shape[1:])

    return Stored(shape, dtype.itemsize, read)


def _read_whole(path: Path) -> dict[str, Tensor]:
    try:
        if zipfile.is_zipfile(path) and _holds_npy(path):
            _check_unpacked(path)
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            return {
                name: torch.from_numpy(
                    np.ascontiguousarray(array.astype(array.dtype.newbyteorder("=")))
                )
                for name, array in arrays.items()
                if array.dtype.kind == "f" and array.dtype.itemsize <= 8
            }
        content = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(content, Tensor):
            content = {path.stem: content}
        if not isinstance(content, dict):
            raise TypeError(
                f"holds a {type(content).__name__}; expected a tensor or a dict of tensors"
            )
        return {
            str(name): _stored_whole(str(name), value)
            for name, value in content.items()
            if isinstance(value, Tensor) and value.is_floating_point()
            if value.layout is torch.strided and not value.is_meta
        }
    except Exception as error:  # numpy and torch raise whatever their parsers meet
        raise InputError(f"{path}: cannot be read as .npz or .pt: {first_line(error)}") from error


def _check_unpacked(path: Path) -> None:
    """Raise ValueError if an archive unpacks to far more than embeddings of its size would."""
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > max(HARMLESS, MOST_RATIO * path.stat().st_size):
        raise ValueError(f"it unpacks to {size:,} bytes, which no embeddings do")


def _stored_whole(name: str, tensor: Tensor) -> Tensor:
    """A tensor, contiguous. Raises ValueError if it repeats what is stored, as no save needs to."""
    size = tensor.numel() * tensor.element_size()
    if size > tensor.untyped_storage().nbytes():
        raise ValueError(f"{name} declares {size:,} bytes and stores fewer; save it .contiguous()")
    return tensor.detach().contiguous()


def _holds_npy(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith(".npy") for name in archive.namelist())


def _in_memory(tensor: Tensor) -> Stored:
    return Stored(
        tuple(tensor.shape), tensor.element_size(), lambda start, stop: tensor[start:stop]
    )


def _read_at(path: Path, at: int, count: int) -> np.ndarray:
    data = np.empty(count, np.uint8)
    try:
        with open_regular(path) as file:
            file.seek(at)
            found = file.readinto(data.data)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if found < count:  # it was long enough when it was opened
        raise InputError(f"{path}: was truncated while it was read; copy or write the file again")
    return data


def _check_size(path: Path, expected: int) -> None:
    size = path.stat().st_size
    if size < expected:
        raise InputError(
            f"{path}: truncated, {size:,} of {expected:,} bytes; copy or write the file again"
        )


def _times(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
