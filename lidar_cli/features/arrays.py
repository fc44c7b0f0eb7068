"""Reads embeddings from array files of other programs: `.npy`, `.npz`, and contiguous tensors.

An array is (n, q, d); or (n*q, d) with q given, the views of a sample contiguous; or (N, d), rows
without views. Arrays are read by offset, a chunk at a time; those of `.npz` are unpacked into
memory. Headers are read in the limited child process, and checked here. Only what reads numbers
imports torch.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lidar_cli.errors import BadRows, InputError, first_line, nearest, printable
from lidar_cli.features.embeddings import Embeddings, StoredArray, with_equal_views, with_names
from lidar_cli.features.schema import HARMLESS, MAX_RATIO
from lidar_cli.runtime.files import open_regular
from lidar_cli.runtime.sandbox import run_limited, validation

if TYPE_CHECKING:
    from torch import Tensor

LONG = 2**36  # bytes that take minutes to read; the user is warned
PIECE = 2**20  # bytes unpacked at a time
PROBED, FEWEST_PROBED = 64, 16  # indices of an axis whose rows are compared to recognise it
PROBED_BYTES = 2**26
CLEARLY_LESS = 0.9  # of two variances
MAX_EXTENTS = 10_000  # of a sparse file; later ones are not examined
MAX_DIMENSIONS, MAX_NUMBER = 64, 2**62
SAVE_AGAIN = "copy or save it again"
NPY, NPZ = (f"lidar_cli.features.numpy_headers:{name}" for name in ("npy", "npz"))
MAPPED_FROM = 2**20  # bytes of the smallest block that is mapped, not allocated by malloc


@dataclass(frozen=True)
class ArrayForm:
    """How an array is read as embeddings.

    dataset: its name, in a file that has several. views_per_sample: q, for rows (n*q, d). axes: of
    three, `nqd`, `qnd`, or `auto`: nqd, and refused if its rows look like (q, n, d).
    """

    dataset: str | None = None
    views_per_sample: int | None = None
    axes: str = "auto"


AS_IT_IS = ArrayForm()


@dataclass(frozen=True)
class Header:
    """The header of a `.npy` file.

    dtype: None unless floating-point of at most 8 bytes. fortran: whether columns are contiguous.
    offset: bytes from the start of the header to the numbers.
    """

    shape: tuple[int, ...]
    dtype: np.dtype | None
    type_name: str
    fortran: bool
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers."""
        return math.prod(self.shape) * (self.dtype.itemsize if self.dtype else 0)


def read_npy(path: Path, form: ArrayForm) -> Embeddings:
    """The embeddings in a `.npy` file.

    Its name is the stem of the file. Raises InputError if the array's shape or type is wrong.
    """
    record = run_limited(NPY, path, str(path), error=InputError, advice=SAVE_AGAIN).value
    with validation(path, InputError, SAVE_AGAIN):
        header = _header(record)
    if header.fortran and len(header.shape) > 1:
        raise InputError(
            f"{path}: stored column by column (Fortran order), so that samples are not contiguous; "
            "save np.ascontiguousarray(array) instead"
        )
    if header.dtype is None:
        raise InputError(
            f"{path}: numbers are {header.type_name}; expected float16, float32 or float64"
        )
    _check_size(path, header)
    stored = stored_at(path, header.offset, header.shape, header.dtype)
    return select_embeddings(path, {path.stem: stored}, form)


def _check_size(path: Path, header: Header) -> None:
    size, expected = path.stat().st_size, header.offset + header.nbytes
    if size < expected:
        raise InputError(
            f"{path}: truncated, {size:,} of {expected:,} bytes; copy or write the file again"
        )


def read_npy_ids(path: Path) -> list[str]:
    """Ids [N], integers or texts, in a `.npy` file. Raises InputError for other content."""
    record = run_limited(NPY, path, str(path), error=InputError, advice=SAVE_AGAIN).value
    with validation(path, InputError, SAVE_AGAIN):
        header = _header(record | {"dtype": record["text"]})
    if header.dtype is None or len(header.shape) != 1:
        raise InputError(
            f"{path}: ids are {header.type_name} of shape {_format_shape(header.shape)}; expected "
            "one axis of integers, or of texts that are no Python objects"
        )
    _check_size(path, header)
    count = header.shape[0]
    return as_texts(read_rows(path, header.offset, header.shape, header.dtype, 0, count))


def read_npz(path: Path, form: ArrayForm) -> Embeddings | None:
    """The embeddings in a `.npz` file; None if a zip file holds no arrays. Raises as `read_npy`."""
    members = run_limited(NPZ, path, str(path), error=InputError, advice=SAVE_AGAIN).value
    if not members:
        return None
    size = path.stat().st_size
    with validation(path, InputError, SAVE_AGAIN):
        arrays = {name: _ZippedArray(path, name, member) for name, member in members.items()}
    stored = {
        name: StoredArray(array.header.shape, array.header.dtype.itemsize, array.read)
        for name, array in arrays.items()
        if array.header.dtype is not None
    }
    embeddings = select_embeddings(path, stored, form)
    array = arrays[embeddings.layer]
    array.check(size)

    def texts(name: str) -> list[str] | None:
        if name not in arrays or arrays[name].header.dtype is not None:
            return None
        with validation(path, InputError, SAVE_AGAIN):
            named = _ZippedArray(path, name, members[name] | {"dtype": members[name]["text"]})
        named.check(size)
        return as_texts(named.numbers)

    embeddings = with_names(embeddings, texts)
    if array.size > 2**28:
        note = f"{path}: this format is read whole, {array.size / 2**20:,.0f} MB in memory"
        embeddings = replace(embeddings, note=note)
    return replace(embeddings, in_memory=array.size)


def select_embeddings(
    path: Path,
    arrays: Mapping[str, StoredArray],
    form: ArrayForm,
) -> Embeddings:
    """The embeddings in `form.dataset`, or in the only suitable array.

    Raises as `choose_array` and `as_embeddings`.
    """
    name = choose_array(path, {key: stored.shape for key, stored in arrays.items()}, form.dataset)
    return as_embeddings(path, name, arrays[name], form)


def choose_array(path: Path, shapes: Mapping[str, tuple[int, ...]], dataset: str | None) -> str:
    """`dataset`, or the name of the only array of two or three axes.

    Raises InputError if there is no such array, or several without `dataset`.
    """
    if dataset is not None:
        if dataset not in shapes:
            raise InputError(f"{path}: no array {dataset!r}; {nearest(dataset, list(shapes))}")
        return dataset
    fitting = [name for name, shape in shapes.items() if len(shape) in (2, 3)]
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(f"{name} {_format_shape(shape)}" for name, shape in list(shapes.items())[:8])
    if not fitting:
        raise InputError(
            f"{path}: found {names or 'no array'}; expected one of (n, q, d) or (N, d)",
            code="no-array",
        )
    raise InputError(f"{path}: found several arrays, {names}; choose one with --dataset")


def as_embeddings(
    path: Path,
    name: str,
    stored: StoredArray,
    form: ArrayForm,
    note: str | None = None,
) -> Embeddings:
    """An array as views [n, q, d] or as rows [N, d].

    Raises InputError if its axes are not two or three, or in another order than `form` says, or q
    does not divide its rows.
    """
    shape, q = stored.shape, form.views_per_sample
    if len(shape) not in (2, 3) or 0 in shape:
        raise InputError(f"{path}: {name} is {_format_shape(shape)}; expected (n, q, d) or (N, d)")
    if len(shape) == 3 and form.axes == "qnd":
        stored = with_views_first(stored)
        shape = stored.shape
    elif len(shape) == 3 and form.axes == "auto":
        check_axes(path, name, stored)
    if len(shape) == 3:
        if q is not None and q != shape[1]:
            raise InputError(
                f"{path}: {name} is {_format_shape(shape)}, which is q = {shape[1]}, "
                f"not --views-per-sample {q}; leave the option out"
            )
        return Embeddings(str(path), name, stored, None, note=note)
    if q is None:
        return Embeddings(str(path), name, None, stored, clean_name="rows", note=note)
    if shape[0] % q:
        raise InputError(f"{path}: {shape[0]} rows are not a multiple of --views-per-sample {q}")
    return Embeddings(str(path), name, with_equal_views(stored, q), None, note=note)


def with_views_first(stored: StoredArray) -> StoredArray:
    """An array (q, n, d) as (n, q, d); rows of a sample are read from q places."""
    q, n, d = stored.shape

    def read(start: int, stop: int) -> Tensor:
        import torch

        return torch.stack([_rows_of_first(stored, k, start, stop) for k in range(q)], dim=1)

    return StoredArray((n, q, d), stored.item_size, read)


def check_axes(path: Path, name: str, stored: StoredArray) -> None:
    """Raise InputError if an array that should be (n, q, d) looks like (q, n, d).

    Rows of one sample differ less than rows of different samples. So if the first axis is the
    shorter one, and rows with equal second index differ clearly less than rows with equal first
    index, then the second index counts the samples. Of collapsed or noisy embeddings neither
    differs clearly, and nothing is raised.
    """
    a, b, d = stored.shape
    n_first = min(a, PROBED)
    n_second = min(b, PROBED, PROBED_BYTES // max(1, n_first * d * stored.item_size))
    if not 2 <= a < b or n_second < FEWEST_PROBED:
        return
    import torch

    rows = torch.stack([_rows_of_first(stored, k, 0, n_second) for k in range(n_first)]).double()
    along_first = float(rows.var(dim=0).sum(dim=-1).mean())  # differ by the first index alone
    along_second = float(rows.var(dim=1).sum(dim=-1).mean())
    if along_first < CLEARLY_LESS * along_second:
        raise InputError(
            f"{path}: {name} is {_format_shape(stored.shape)}, which looks like (q, n, d): rows "
            f"with equal second index differ less (variance {along_first:.3g}, not "
            f"{along_second:.3g}): pass --axes qnd; or --axes nqd if it is (n, q, d)",
            code="views-first",
        )


def _rows_of_first(stored: StoredArray, k: int, start: int, stop: int) -> Tensor:
    """Rows start .. stop - 1 of the second axis at index k of the first [stop - start, d]."""
    if stored.rows is not None:
        return stored.rows(k * stored.shape[1] + start, k * stored.shape[1] + stop)
    return stored.read(k, k + 1)[0, start:stop]


def stored_at(
    path: Path,
    offset: int,
    shape: tuple[int, ...],
    dtype: np.dtype,
    as_type: str | None = None,
) -> StoredArray:
    """A contiguous array that begins at an offset; the caller has checked that it is in the file.

    as_type: for a type that numpy lacks, the name of the torch type to view the numbers as.
    """

    def read(start: int, stop: int) -> Tensor:
        return typed(read_rows(path, offset, shape, dtype, start, stop))

    def rows(start: int, stop: int) -> Tensor:
        count = math.prod(shape[:-1])
        return typed(read_rows(path, offset, (count, *shape[-1:]), dtype, start, stop))

    def typed(rows: np.ndarray) -> Tensor:
        import torch

        numbers = torch.from_numpy(rows)
        return numbers if as_type is None else numbers.view(getattr(torch, as_type))

    return StoredArray(shape, dtype.itemsize, read, rows)


def read_rows(
    path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype, start: int, stop: int
) -> np.ndarray:
    """Rows start .. stop - 1 of a contiguous array, in native byte order. Raises as `read_at`."""
    row_bytes = math.prod(shape[1:]) * dtype.itemsize
    data = read_at(path, offset + start * row_bytes, (stop - start) * row_bytes)
    native = data.view(dtype).astype(dtype.newbyteorder("="), copy=False)
    return native.reshape(stop - start, *shape[1:])


def _returned_memory(size: int) -> np.ndarray:
    """Uninitialised bytes that go back to the system as soon as they are released.

    Of blocks that several threads allocate and release in turn, malloc keeps more and more.
    """
    if size < MAPPED_FROM:
        return np.empty(size, np.uint8)
    try:
        memory = mmap.mmap(-1, size, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise MemoryError(f"Unable to allocate {size:,} bytes") from error
    with suppress(OSError):  # a kernel may have no large pages, which only save time
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)


def read_at(path: Path, offset: int, count: int) -> np.ndarray:
    """`count` bytes of a file. Raises BadRows if it cannot be read, or has become shorter."""
    data = _returned_memory(count)
    try:
        with open_regular(path) as file:
            file.seek(offset)
            n_read = file.readinto(data.data)
    except OSError as error:
        raise BadRows(f"{path}: cannot be read: {error.strerror}") from error
    if n_read < count:  # the file was long enough when it was opened
        raise BadRows(
            f"{path}: was truncated while it was read; copy or write the file again",
            code="truncated",
        )
    return data


def with_size_note(embeddings: Embeddings) -> Embeddings:
    """The embeddings, with a note on their size if reading them takes minutes."""
    parts = (embeddings.views, embeddings.clean)
    size = sum(math.prod(part.shape) * part.item_size for part in parts if part is not None)
    if size < LONG or embeddings.note is not None:
        return embeddings
    return replace(embeddings, note=f"{embeddings.file}: {size / 2**30:,.0f} GB to be read")


def check_not_sparse(path: Path) -> None:
    """Raise BadRows for a sparse file that is almost all holes, which read as zeros.

    A terabyte of holes takes no disk space, and hours to read.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size <= HARMLESS or not hasattr(os, "SEEK_DATA"):
                return
            stored, examined = _stored_bytes(file.fileno(), size)
    except OSError:  # a file system without SEEK_DATA; other errors are raised when rows are read
        return
    if stored * MAX_RATIO < examined:
        raise BadRows(
            f"{path}: says to have {size:,} bytes, of which {stored:,} were ever written; "
            "expected embeddings; copy or write the file again",
            code="sparse",
        )


def _stored_bytes(descriptor: int, size: int) -> tuple[int, int]:
    """Bytes outside holes, and the number of bytes from the start that were examined."""
    stored = position = 0
    for _ in range(MAX_EXTENTS):
        try:
            begin = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return stored, size  # no data up to the end
        position = os.lseek(descriptor, begin, os.SEEK_HOLE)
        stored += position - begin
        if position >= size:
            break
    return stored, position


class _ZippedArray:
    """An array in a `.npz` file, unpacked when it is first read."""

    def __init__(self, path: Path, name: str, record: dict[str, Any]) -> None:
        self._path, self._name = path, name
        self.header = _header(record)
        self._start, self._packed, self.size, self._crc = checked_sizes(
            [record[key] for key in ("start", "packed", "size", "crc")]
        )
        self._deflated = bool(record["deflated"])

    def check(self, file_size: int) -> None:
        """Raise InputError if it is too large for embeddings, or its sizes are contradictory."""
        declared = self.header.offset + self.header.nbytes
        if self._start + self._packed > file_size:
            raise self._damaged("it is outside the file")
        if self.size > max(HARMLESS, MAX_RATIO * self._packed):
            raise self._damaged(f"it unpacks to {self.size:,} bytes, which no embeddings do")
        if self.size != declared:
            raise self._damaged(f"it has {self.size:,} bytes, its array {declared:,}")

    def read(self, start: int, stop: int) -> Tensor:
        """Rows start .. stop - 1. Raises InputError if the bytes are damaged."""
        import torch

        return torch.from_numpy(self.numbers[start:stop])

    @cached_property
    def numbers(self) -> np.ndarray:
        """The whole array. Raises as `read`."""
        header = self.header
        assert header.dtype is not None
        content = np.empty(self.size, np.uint8)
        filled = crc = 0
        try:
            for piece in self._pieces():
                if filled + len(piece) > self.size:
                    raise self._damaged("it unpacks to more bytes than it declares")
                content[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
                filled, crc = filled + len(piece), zlib.crc32(piece, crc)
        except (OSError, zlib.error) as error:
            raise self._damaged(first_line(error)) from error
        if filled < self.size or crc != self._crc:
            raise self._damaged("its bytes do not match their checksum")
        numbers = content[header.offset :].view(header.dtype)
        numbers = numbers.reshape(header.shape, order="F" if header.fortran else "C")
        return np.require(numbers, header.dtype.newbyteorder("="), ["C", "A", "W"])

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


def _header(record: dict[str, Any]) -> Header:
    """The header in a record of the child process. Raises an error that `validation` converts."""
    kind = record["dtype"]
    if kind is not None and not re.fullmatch(r"[<>]f[248]|[<>|][iuUS]\d{1,4}", kind):
        raise ValueError(kind)
    return Header(
        checked_sizes(record["shape"]),
        None if kind is None else np.dtype(kind),
        printable(str(record["type"])),
        bool(record["fortran"]),
        *checked_sizes([record["offset"]]),
    )


def checked_sizes(values: Any) -> tuple[int, ...]:
    """Sizes from a file. Raises ValueError if one is impossible, or there are too many."""
    if len(values) > MAX_DIMENSIONS:
        raise ValueError("dimensions")
    if not all(type(value) is int and 0 <= value < MAX_NUMBER for value in values):
        raise ValueError("size")
    return tuple(values)


def as_texts(values: np.ndarray) -> list[str]:
    """Texts, bytes or whole numbers [N] as texts."""
    if values.dtype.kind == "S":
        return [value.decode("utf-8", "replace") for value in values.tolist()]
    return list(map(str, values.tolist()))


def _format_shape(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
