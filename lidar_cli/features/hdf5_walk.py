"""Describes the contents of an HDF5 file as JSON; runs only in the limited child process.

HDF5 follows trees and lists whose addresses are in the file, allocates as much memory as the file
declares, and opens any other file that a link, an external storage list or a virtual dataset
names. Therefore links are followed here, one at a time and only hard and soft ones, and a virtual
dataset is read only if its sources are plain arrays in files of the same directory. Imports no
torch.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from lidar_cli.errors import FeatureFileError, first_line
from lidar_cli.features.schema import FORMAT, HARMLESS, MAX_PROVENANCE, MAX_RATIO, SHARD_FORMAT

MAX_DEPTH = 32  # of nested groups, and of soft links to soft links
MAX_OBJECTS = 10_000  # that are examined to find an array
ATTRIBUTES = ("format", "version", "provenance", "share", "dse")
PARTS = {
    "views": "f",
    "clean": "f",
    "crc32": "u",
}  # arrays of a layer -> allowed kinds of numpy types
SAMPLES = {"done": "uib", "label": "iufb", "q": "iu"}
MAX_TEXT = 2**12  # bytes of an id of fixed length
MAX_CHUNK = 2**28  # bytes; HDF5 unpacks a chunk at once

Record = dict[str, Any]  # of JSON values


class Refused(Exception):
    """Content that is not read; the text says why, and the next step. Callers add the path."""


class Absent(KeyError):
    """The file has no object of that name."""


def describe(source: BinaryIO, arguments: Record) -> Record:
    """Attributes of a file; for a feature file, its layers and arrays too.

    arguments, here and below: "path", and "name" for messages. Raises FeatureFileError.
    """
    with _opened(source, arguments) as file:
        return _described(file)


def describe_one(source: BinaryIO, arguments: Record) -> Record | None:
    """Describes the array arguments["array"] of floating-point numbers; None if there is none."""
    with _opened(source, arguments) as file:
        name = arguments["array"]
        with suppress(Absent):
            return _array(file, name, "f") if _is_real(_member(file, name)) else None
        return None


def shapes(source: BinaryIO, arguments: Record) -> Record:
    """Shapes by name of the arrays of floating-point numbers that hard links lead to."""
    with _opened(source, arguments) as file:
        items = _items(file, limited=True)
        return {name: list(item.shape) for name, item in items if _is_real(item)}


def walk_everything(source: BinaryIO, arguments: Record) -> Record:
    """As `describe`, after a traversal of everything that HDF5 may access when it writes."""
    with _opened(source, arguments) as file:
        for name in file.attrs:
            _attribute(file, name)
        for _, item in _items(file, limited=False):
            if isinstance(item, h5py.Dataset):
                # get_storage_size traverses the whole index of the chunks.
                read = item.virtual_sources if item.is_virtual else item.id.get_storage_size
                _ = item.shape, item.dtype, item.external, item.chunks, read()
        return _described(file)


def rows(source: BinaryIO, arguments: Record) -> memoryview:
    """Bytes of rows "start" to "stop" of the array "array", in the machine's byte order.

    arguments["kinds"]: allowed kinds of numpy types.
    """
    with _opened(source, arguments) as file:
        array = _checked(_member(file, arguments["array"]), arguments["kinds"])
        some = slice(arguments["start"], arguments["stop"])
        values = array[some] if array.shape else array[()]
        dtype = array.dtype.newbyteorder("=")
        return np.ascontiguousarray(values, dtype).reshape(-1).view(np.uint8).data


def texts(source: BinaryIO, arguments: Record) -> Record:
    """Texts "start" to "stop" of the list "array", and its length; -1 if absent and "optional"."""
    with _opened(source, arguments) as file:
        try:
            array = _member(file, arguments["array"])
        except Absent:
            if arguments.get("optional"):
                return {"count": -1, "texts": []}
            raise
        if not isinstance(array, h5py.Dataset) or array.shape is None or array.ndim != 1:
            raise ValueError("no list of texts, where the ids of samples should be")
        kind = h5py.check_string_dtype(array.dtype)
        is_plain = not (array.is_virtual or array.chunks or array.external)
        if kind is None or kind.length is not None:
            _checked(array, "iuS", largest=MAX_TEXT)
        elif not is_plain:
            raise ValueError(f"{array.name} is stored in chunks; expected contiguous texts")
        some = array[arguments["start"] : arguments["stop"]]
        return {"count": len(array), "texts": list(map(_text, some))}


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


@contextmanager
def _opened(source: BinaryIO, arguments: Record) -> Iterator[h5py.File]:
    """The file, opened with HDF5. Raises FeatureFileError if the parent opened another file."""
    name = arguments["name"]
    try:
        file = h5py.File(arguments["path"], "r")
    except OSError as error:
        raise FeatureFileError(
            f"{name}: cannot be opened: {first_line(error)}", code="cannot-be-opened"
        ) from error
    with file:
        one, other = os.fstat(source.fileno()), os.fstat(file.id.get_vfd_handle())
        if (one.st_dev, one.st_ino) != (other.st_dev, other.st_ino):
            raise FeatureFileError(
                f"{name}: was replaced while it was read; run it again", code="changed"
            )
        try:
            yield file
        except Exception as error:
            raise FeatureFileError(f"{name}: {_reason(error)}", code="damaged") from error


def _reason(error: Exception) -> str:
    """Why a file is refused, for a message after its path. Raises MemoryError if memory ran out."""
    if isinstance(error, MemoryError):
        raise MemoryError from error
    if isinstance(error, Refused):
        return str(error)
    return f"damaged: {first_line(error)}; extract it again"


def _described(file: h5py.File) -> Record:
    attributes = {name: _attribute(file, name) for name in ATTRIBUTES}
    record: Record = {
        **{"attributes": attributes, "layers": [], "unlisted": None, "arrays": {}},
        "has_ids": False,
    }
    if attributes["format"] not in (FORMAT, SHARD_FORMAT):
        return record
    try:
        layers = _member(file, "embeddings")
        record["layers"] = list(layers) if isinstance(layers, h5py.Group) else []
    except Exception as error:
        record["unlisted"] = _reason(error)
    wanted = {f"samples/{name}": kinds for name, kinds in SAMPLES.items()}
    for layer in record["layers"]:
        wanted |= {f"embeddings/{layer}/{part}": kinds for part, kinds in PARTS.items()}
    for name, kinds in wanted.items():
        if (array := _array(file, name, kinds)) is not None:
            record["arrays"][name] = array
    with suppress(Absent):
        _member(file, "samples/id")
        record["has_ids"] = True
    return record


def _attribute(file: h5py.File, name: str) -> str | int | None:
    """A text or an integer; "" if it is of another type, or too long; None if it is absent."""
    if name not in file.attrs:
        return None
    if file.attrs.get_id(name).shape not in ((), (1,)):
        return ""  # an array of texts can repeat one long text thousands of times
    value = file.attrs[name]
    value = value[0] if isinstance(value, np.ndarray) else value
    value = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    if isinstance(value, np.integer):
        return int(value)
    return value if isinstance(value, str) and len(value) <= MAX_PROVENANCE else ""


def _array(file: h5py.File, name: str, kinds: str) -> Record | None:
    """Shape, type and offset of an array, or why it is refused; None if it does not exist."""
    sources: list[str] = []
    try:
        item = _member(file, name)
        if isinstance(item, h5py.Dataset) and item.is_virtual:
            sources = sorted({source.file_name for source in item.virtual_sources()})
        return {**_storage(_checked(item, kinds)), "kinds": kinds, "sources": sources}
    except Absent:
        return None
    except Exception as error:
        return {"refused": _reason(error), "sources": sources}


def _storage(array: h5py.Dataset) -> Record:
    """Shape, type, and offset of the first number; None unless numpy can read all from there."""
    plain = array.dtype.kind in "iuf" and array.id.get_type() == h5py.h5t.py_create(array.dtype)
    scattered = array.is_virtual or array.chunks or array.external or not plain
    offset = None if scattered else array.id.get_offset()
    if offset is not None and array.id.get_storage_size() < array.nbytes:
        offset = None
    return {"shape": list(array.shape), "dtype": array.dtype.str, "offset": offset}


def _checked(item: object, kinds: str, largest: int = 8) -> h5py.Dataset:
    """The item itself, if it is an array of items of one of `kinds`, of at most `largest` bytes.

    Raises Refused if numbers are in files that are not allowed, ValueError if it is no such array
    or declares far more bytes than it stores.
    """
    if not isinstance(item, h5py.Dataset) or item.shape is None:
        raise ValueError("a group, where an array should be")
    if item.dtype.kind not in kinds or item.dtype.itemsize > largest:
        raise ValueError(f"{item.name} holds {item.dtype}, which are not the numbers expected")
    stored = _stored_virtually(item, kinds) if item.is_virtual else _stored(item)
    declared = math.prod(item.shape) * item.dtype.itemsize
    if declared > max(HARMLESS, MAX_RATIO * stored):
        raise ValueError(f"{item.name} declares {declared:,} bytes, of which it stores {stored:,}")
    return item


def _member(file: h5py.File, name: str) -> h5py.Group | h5py.Dataset:
    """The object `name` of the file.

    Raises Refused if a link leads out of the file, Absent if there is no such object.
    """
    item: h5py.Group | h5py.Dataset = file
    steps, n_soft = _steps(name), 0
    while steps:
        step = steps.pop(0)
        if not isinstance(item, h5py.Group) or not item.id.links.exists(step.encode()):
            raise Absent(f"nothing is named {name!r}")
        kind = item.id.links.get_info(step.encode()).type
        if kind == h5py.h5l.TYPE_HARD:
            item = item[step]
        elif kind == h5py.h5l.TYPE_SOFT and n_soft < MAX_DEPTH:
            n_soft += 1
            target = item.id.links.get_val(step.encode()).decode("utf-8", "replace")
            item = file if target.startswith("/") else item
            steps = [*_steps(target), *steps]
        else:
            raise _outside(name, "is a link to another place")
    return item


def _steps(name: str) -> list[str]:
    return [step for step in name.split("/") if step not in ("", ".")]


def _is_real(item: object) -> bool:
    if not isinstance(item, h5py.Dataset) or item.shape is None:
        return False
    return bool(item.dtype.kind == "f" and item.dtype.itemsize <= 8)


def _items(file: h5py.File, limited: bool) -> Iterator[tuple[str, h5py.Group | h5py.Dataset]]:
    """All objects that hard links lead to, by name, each once.

    limited: raise Refused beyond MAX_OBJECTS and MAX_DEPTH.
    """
    seen = {file.id}
    waiting: list[tuple[h5py.Group, str, int]] = [(file, "", 0)]
    while waiting:
        group, above, depth = waiting.pop()
        for name in group:
            if group.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
                continue
            item = group[name]
            if item.id in seen:
                continue
            seen.add(item.id)
            if limited and (len(seen) > MAX_OBJECTS or depth > MAX_DEPTH):
                raise Refused(
                    f"more than {MAX_OBJECTS:,} objects, or {MAX_DEPTH} groups in one another; "
                    "name the array with --dataset"
                )
            if isinstance(item, h5py.Group):
                waiting.append((item, f"{above}{name}/", depth + 1))
            yield f"{above}{name}", item


def _stored(array: h5py.Dataset) -> int:
    """Bytes of an array that the file stores. Raises Refused if they are in another file."""
    if array.external:
        raise _outside(array.name, f"is stored in another file, {array.external[0][0]!r}")
    chunk = math.prod(array.chunks or ()) * array.dtype.itemsize
    if chunk > MAX_CHUNK:
        raise ValueError(f"{array.name} has chunks of {chunk:,} bytes, at most {MAX_CHUNK:,}")
    return int(array.id.get_storage_size())


def _stored_virtually(array: h5py.Dataset, kinds: str) -> int:
    """Bytes that the source files of a virtual dataset store. Raises as `_checked`."""
    stored = 0
    sources = {(source.file_name, source.dset_name) for source in array.virtual_sources()}
    for name, inner in sorted(sources):
        if name == ".":
            raise _outside(array.name, "is a virtual dataset of itself")
        path = Path(array.file.filename).with_name(name) if _is_plain(name) else None
        if path is None or not _is_file(path):
            raise _outside(array.name, f"is a virtual dataset of {name!r}")
        with h5py.File(path, "r") as file:
            part = _member(file, inner)
            if isinstance(part, h5py.Dataset) and part.is_virtual:
                raise _outside(array.name, f"is a virtual dataset of another, in {name!r}")
            stored += _stored(_checked(part, kinds))
    return stored


def _is_plain(name: str) -> bool:
    """Whether this is the name of a file in the same directory, and not a pattern of HDF5."""
    return name == Path(name).name and not {"/", "\\", "%", "\0"} & set(name) and name != ".."


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _outside(name: str, fault: str) -> Refused:
    return Refused(
        f"{name} {fault}; expected numbers in this file, or in files of the same directory "
        "without links or patterns; copy them into one"
    )
