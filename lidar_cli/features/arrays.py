"""Embeddings in other people's array files: `.npy`, `.npz`, and tensors that lie in a file.

An array is (n, q, d); or (n*q, d) with q given, the views of a sample contiguous; or (N, d), rows
without views. Arrays are read by offset, a chunk at a time; those of `.npz` are unpacked whole.
What a header says is read in the limited child process, and checked here.
"""

from __future__ import annotations

import errno
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lidar_cli.errors import BadRows, InputError, first_line, nearest, printable
from lidar_cli.features.blocks import Embeddings, Stored
from lidar_cli.runtime.files import open_regular
from lidar_cli.runtime.sandbox import run_limited

# Bytes that an archive may unpack to, however small it is, and a byte of it, in any case.
HARMLESS, MOST_RATIO = 2**26, 200
LONG = 2**36  # bytes, of which the user is warned before minutes are spent on them
PIECE = 2**20  # bytes that are unpacked at a time
MOST_EXTENTS = 10_000  # runs of data that are looked at in search of holes
MOST_DIMENSIONS, MOST_NUMBER = 64, 2**62
FLOATS = {f"{order}f{size}" for order in "<>" for size in (2, 4, 8)}  # numpy's names
SAVE_AGAIN = "copy or save it again"
NPY, NPZ = (f"lidar_cli.features.array_headers:{name}" for name in ("npy", "npz"))


@dataclass(frozen=True)
class Header:
    """What a `.npy` header says. dtype: None unless floating-point of at most 8 bytes.

    offset: of the numbers from where the header begins.
    """

    shape: tuple[int, ...]
    dtype: np.dtype | None
    type_name: str
    fortran: bool
    offset: int

    @property
    def nbytes(self) -> int:
        """Of the numbers."""
        return math.prod(self.shape) * (self.dtype.itemsize if self.dtype else 0)


def read_npy(path: Path, dataset: str | None, views_per_sample: int | None) -> Embeddings:
    """The embeddings in a `.npy` file.

    dataset: name of the array, which is that of the file. views_per_sample: q, for (n*q, d).
    Raises InputError if the array's shape or type is wrong.
    """
    walked = run_limited(NPY, path, str(path), error=InputError, advice=SAVE_AGAIN)
    with _validated(path):
        header = _header(walked.value)
    _check_order(path, header)
    if header.dtype is None:
        raise InputError(
            f"{path}: numbers are {header.type_name}; expected float16, float32 or float64"
        )
    _check_size(path, header.offset + header.nbytes)
    stored = stored_at(path, header.offset, header.shape, header.dtype)
    return select(path, {path.stem: stored}, dataset, views_per_sample)


def read_npz(path: Path, dataset: str | None, views_per_sample: int | None) -> Embeddings | None:
    """The embeddings in a `.npz` file, or None if a zip file is none. Raises as `read_npy`."""
    members = run_limited(NPZ, path, str(path), error=InputError, advice=SAVE_AGAIN).value
    if not members:
        return None
    size = path.stat().st_size
    with _validated(path):
        arrays = {name: _Packed(path, name, member) for name, member in members.items()}
    stored = {
        name: Stored(array.header.shape, array.header.dtype.itemsize, array.read)
        for name, array in arrays.items()
        if array.header.dtype is not None
    }
    embeddings = select(path, stored, dataset, views_per_sample)
    array = arrays[embeddings.layer]
    array.check(size)
    if array.size > 2**28:
        note = f"{path}: this format is read whole, {array.size / 2**20:,.0f} MB in memory"
        embeddings = replace(embeddings, note=note)
    return replace(embeddings, in_memory=array.size)


def select(
    path: Path,
    arrays: Mapping[str, Stored],
    dataset: str | None,
    views_per_sample: int | None,
) -> Embeddings:
    """The array that is asked for, or the only one that fits. Raises as `choose`, `arrange`."""
    name = choose(path, {key: stored.shape for key, stored in arrays.items()}, dataset)
    return arrange(path, name, arrays[name], views_per_sample)


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


def stored_at(
    path: Path,
    offset: int,
    shape: tuple[int, ...],
    dtype: np.dtype,
    as_type: torch.dtype | None = None,
) -> Stored:
    """An array whose numbers lie in a row from an offset on, which the caller has checked.

    as_type: of torch, of the same size, where numpy has none.
    """
    row_bytes = math.prod(shape[1:]) * dtype.itemsize

    def read(start: int, stop: int) -> Tensor:
        data = read_at(path, offset + start * row_bytes, (stop - start) * row_bytes)
        native = data.view(dtype).astype(dtype.newbyteorder("="), copy=False)
        numbers = torch.from_numpy(native).view(stop - start, *shape[1:])
        return numbers if as_type is None else numbers.view(as_type)

    return Stored(shape, dtype.itemsize, read)


def read_at(path: Path, at: int, count: int) -> np.ndarray:
    """So many bytes of a file. Raises BadRows if it cannot be read, or has become shorter."""
    data = np.empty(count, np.uint8)
    try:
        with open_regular(path) as file:
            file.seek(at)
            found = file.readinto(data.data)
    except OSError as error:
        raise BadRows(f"{path}: cannot be read: {error.strerror}") from error
    if found < count:  # it was long enough when it was opened
        raise BadRows(f"{path}: was truncated while it was read; copy or write the file again")
    return data


def with_size_note(embeddings: Embeddings) -> Embeddings:
    """The embeddings, with a note on their size if reading them takes minutes or longer."""
    parts = (embeddings.views, embeddings.clean)
    size = sum(math.prod(part.shape) * part.item_size for part in parts if part is not None)
    if size < LONG or embeddings.note is not None:
        return embeddings
    return replace(embeddings, note=f"{embeddings.file}: {size / 2**30:,.0f} GB to be read")


def check_stored(path: Path) -> None:
    """Raise BadRows for a file that is almost all holes: zeros that nobody wrote.

    A terabyte of them fits on any disk, and takes hours to read.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size <= HARMLESS or not hasattr(os, "SEEK_DATA"):
                return
            stored, looked_at = _data_within(file.fileno(), size)
    except OSError:  # a file system that does not tell; and what cannot be opened is told later
        return
    if stored * MOST_RATIO < looked_at:
        raise BadRows(
            f"{path}: says to have {size:,} bytes, of which {stored:,} were ever written; "
            "expected embeddings; copy or write the file again"
        )


def _data_within(descriptor: int, size: int) -> tuple[int, int]:
    """Bytes outside holes, and how many bytes from the start were looked at."""
    stored = at = 0
    for _ in range(MOST_EXTENTS):
        try:
            begin = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return stored, size  # no data up to the end
        at = os.lseek(descriptor, begin, os.SEEK_HOLE)
        stored += at - begin
        if at >= size:
            break
    return stored, at


class _Packed:
    """A member of a `.npz` file, unpacked when it is first read."""

    def __init__(self, path: Path, name: str, record: dict[str, Any]) -> None:
        self._path, self._name = path, name
        self.header = _header(record)
        self._start, self._packed, self.size, self._crc = _numbers(
            [record[key] for key in ("start", "packed", "size", "crc")]
        )
        self._deflated = bool(record["deflated"])

    def check(self, file_size: int) -> None:
        """Raise InputError if it unpacks to more than embeddings would, or not to the array."""
        declared = self.header.offset + self.header.nbytes
        if self._start + self._packed > file_size:
            raise self._damaged("it lies outside the file")
        if self.size > max(HARMLESS, MOST_RATIO * self._packed):
            raise self._damaged(f"it unpacks to {self.size:,} bytes, which no embeddings do")
        if self.size != declared:
            raise self._damaged(f"it has {self.size:,} bytes, its array {declared:,}")

    def read(self, start: int, stop: int) -> Tensor:
        """Rows start .. stop - 1. Raises InputError if the bytes are damaged."""
        return self._whole[start:stop]

    @cached_property
    def _whole(self) -> Tensor:
        header = self.header
        assert header.dtype is not None
        content = np.empty(self.size, np.uint8)
        filled = crc = 0
        try:
            for piece in self._pieces():
                if filled + len(piece) > self.size:
                    raise self._damaged("it unpacks to more than it says")
                content[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
                filled, crc = filled + len(piece), zlib.crc32(piece, crc)
        except (OSError, zlib.error) as error:
            raise self._damaged(first_line(error)) from error
        if filled < self.size or crc != self._crc:
            raise self._damaged("its bytes do not match their checksum")
        numbers = content[header.offset :].view(header.dtype)
        numbers = numbers.reshape(header.shape, order="F" if header.fortran else "C")
        native = np.require(numbers, header.dtype.newbyteorder("="), ["C", "A", "W"])
        return torch.from_numpy(native)

    def _pieces(self) -> Iterator[bytes]:
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS) if self._deflated else None
        with open_regular(self._path) as file:
            file.seek(self._start)
            for at in range(0, self._packed, PIECE):
                packed = file.read(min(PIECE, self._packed - at))
                while unpacker is not None and packed:
                    yield unpacker.decompress(packed, PIECE)
                    packed = unpacker.unconsumed_tail
                if unpacker is None:
                    yield packed
        if unpacker is not None:
            yield unpacker.flush()

    def _damaged(self, why: str) -> InputError:
        return InputError(
            f"{self._path}: cannot be read as .npz or .pt: {self._name}: {why}; {SAVE_AGAIN}"
        )


def _check_order(path: Path, header: Header) -> None:
    if header.fortran and len(header.shape) > 1:
        raise InputError(
            f"{path}: stored column by column (Fortran order), so that samples are not contiguous; "
            "save np.ascontiguousarray(array) instead"
        )


def _check_size(path: Path, expected: int) -> None:
    size = path.stat().st_size
    if size < expected:
        raise InputError(
            f"{path}: truncated, {size:,} of {expected:,} bytes; copy or write the file again"
        )


@contextmanager
def _validated(path: Path) -> Iterator[None]:
    """Raises InputError if what the child returned makes no sense."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: the header makes no sense; {SAVE_AGAIN}") from error


def _header(record: dict[str, Any]) -> Header:
    """The header that the child returned. Raises ValueError and its kind."""
    kind = record["dtype"]
    if kind is not None and kind not in FLOATS:
        raise ValueError(kind)
    return Header(
        _numbers(record["shape"]),
        None if kind is None else np.dtype(kind),
        printable(str(record["type"])),
        bool(record["fortran"]),
        *_numbers([record["offset"]]),
    )


def _numbers(values: Any) -> tuple[int, ...]:
    """Sizes. Raises ValueError if one is negative or impossible, or they are too many."""
    if len(values) > MOST_DIMENSIONS:
        raise ValueError("dimensions")
    if not all(type(value) is int and 0 <= value < MOST_NUMBER for value in values):
        raise ValueError("size")
    return tuple(values)


def _times(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
