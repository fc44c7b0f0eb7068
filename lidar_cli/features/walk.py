"""What an HDF5 file holds, as plain values: runs in the limited child process, and there alone.

HDF5 follows trees and lists whose addresses the file itself gives, takes as much memory as the file
says, and opens by itself whatever other file a link, an external storage list or a virtual dataset
names. So links are followed one step at a time, hard and soft ones alone, and a virtual dataset is
read only where its sources are plain arrays in files of the same folder. Imports no torch.
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
from lidar_cli.features.provenance import FORMAT, LONGEST, SHARD_FORMAT

DEPTH = 32  # of groups in one another, and soft links in a row
OBJECTS = 10_000  # that are looked at in search of an array
ATTRIBUTES = ("format", "version", "provenance", "share")
PARTS = {"views": "f", "clean": "f", "crc32": "u"}  # of a layer, with the kinds of their numbers
SAMPLES = {"done": "uib", "label": "iufb"}
MOST_CHUNK = 2**28  # bytes, since HDF5 unpacks a chunk whole
HARMLESS = 2**26  # bytes that an array may unpack to, however few are stored
MOST_RATIO = 200  # of bytes declared to bytes stored, which no embeddings reach
NO_MEMORY = "memory allocation failed"  # in HDF5's words

Record = dict[str, Any]  # of JSON values


class Refused(Exception):
    """What the file holds is not read; the text says why, and what to do. Callers add the path."""


class Absent(KeyError):
    """Nothing has the name."""


def describe(source: BinaryIO, arguments: Record) -> Record:
    """Attributes of a file; of a feature file, its layers and arrays too.

    arguments of all walkers here: "path", and "name" as errors have it. Raises FeatureFileError.
    """
    with _opened(source, arguments) as file:
        return _described(file)


def describe_one(source: BinaryIO, arguments: Record) -> Record | None:
    """The array of floating-point numbers that is called arguments["array"], if there is one."""
    with _opened(source, arguments) as file:
        name = arguments["array"]
        with suppress(Absent):
            return _array(file, name, "f") if _is_real(_member(file, name)) else None
        return None


def shapes(source: BinaryIO, arguments: Record) -> Record:
    """Shapes of the arrays of floating-point numbers by name, as far as hard links lead to them."""
    with _opened(source, arguments) as file:
        items = _items(file, limited=True)
        return {name: list(item.shape) for name, item in items if _is_real(item)}


def walk_whole(source: BinaryIO, arguments: Record) -> Record:
    """As `describe`, of a file that HDF5 is to write into: all that it may look at is looked at."""
    with _opened(source, arguments) as file:
        for name in file.attrs:
            _attribute(file, name)
        for _, item in _items(file, limited=False):
            if isinstance(item, h5py.Dataset):
                # The size is found by a walk through the whole index of the chunks.
                read = item.virtual_sources if item.is_virtual else item.id.get_storage_size
                _ = item.shape, item.dtype, item.external, item.chunks, read()
        return _described(file)


def rows(source: BinaryIO, arguments: Record) -> memoryview:
    """Bytes of rows "start" to "stop" of the array "array", in the machine's byte order.

    arguments["kinds"]: of numbers that the array may hold.
    """
    with _opened(source, arguments) as file:
        array = _checked(_member(file, arguments["array"]), arguments["kinds"])
        some = slice(arguments["start"], arguments["stop"])
        values = array[some] if array.shape else array[()]
        dtype = array.dtype.newbyteorder("=")
        return np.ascontiguousarray(values, dtype).reshape(-1).view(np.uint8).data


def texts(source: BinaryIO, arguments: Record) -> Record:
    """Texts "start" to "stop" of the list "array", and how many it has."""
    with _opened(source, arguments) as file:
        array = _member(file, arguments["array"])
        if not isinstance(array, h5py.Dataset) or array.shape is None or array.ndim != 1:
            raise ValueError("no list of texts, where the ids of samples should be")
        kind = h5py.check_string_dtype(array.dtype)
        is_plain = not (array.is_virtual or array.chunks or array.external)
        if kind is None or kind.length is not None or not is_plain:
            raise ValueError(f"{array.name} holds {array.dtype}, which are not the texts expected")
        some = array[arguments["start"] : arguments["stop"]]
        return {"count": len(array), "texts": [text.decode("utf-8", "replace") for text in some]}


@contextmanager
def _opened(source: BinaryIO, arguments: Record) -> Iterator[h5py.File]:
    """The file, which is the one that the parent has opened. Raises FeatureFileError."""
    name = arguments["name"]
    try:
        file = h5py.File(arguments["path"], "r")
    except OSError as error:
        raise FeatureFileError(f"{name}: cannot be opened: {first_line(error)}") from error
    with file:
        one, other = os.fstat(source.fileno()), os.fstat(file.id.get_vfd_handle())
        if (one.st_dev, one.st_ino) != (other.st_dev, other.st_ino):
            raise FeatureFileError(f"{name}: was replaced while it was read; run it again")
        try:
            yield file
        except Exception as error:
            raise FeatureFileError(f"{name}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Why a file is refused, as it stands behind its path. Raises MemoryError if that is why."""
    if isinstance(error, MemoryError) or NO_MEMORY in str(error):
        raise MemoryError from error
    if isinstance(error, Refused):
        return str(error)
    return f"damaged: {first_line(error)}; extract it again"


def _described(file: h5py.File) -> Record:
    attributes = {name: _attribute(file, name) for name in ATTRIBUTES}
    record: Record = {"attributes": attributes, "layers": [], "unlisted": None, "arrays": {}}
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
    return record


def _attribute(file: h5py.File, name: str) -> str | int | None:
    """A text or a whole number; None for what is absent, of another type, or beyond measure."""
    if name not in file.attrs or file.attrs.get_id(name).shape != ():
        return None  # thousands of texts may be one that is stored once
    value = file.attrs[name]
    if isinstance(value, np.integer):
        return int(value)
    return value if isinstance(value, str) and len(value) <= LONGEST else None


def _array(file: h5py.File, name: str, kinds: str) -> Record | None:
    """Shape, type and place of an array, or why it is refused; None where nothing has the name."""
    sources: list[str] = []
    try:
        found = _member(file, name)
        if isinstance(found, h5py.Dataset) and found.is_virtual:
            sources = sorted({source.file_name for source in found.virtual_sources()})
        return {**_place(_checked(found, kinds)), "kinds": kinds, "sources": sources}
    except Absent:
        return None
    except Exception as error:
        return {"refused": _reason(error), "sources": sources}


def _place(found: h5py.Dataset) -> Record:
    """offset: where all numbers lie in a row, as numpy has them; None where HDF5 must read them."""
    plain = found.dtype.kind in "iuf" and found.id.get_type() == h5py.h5t.py_create(found.dtype)
    apart = found.is_virtual or found.chunks or found.external or not plain
    offset = None if apart else found.id.get_offset()
    if offset is not None and found.id.get_storage_size() < found.nbytes:
        offset = None
    return {"shape": list(found.shape), "dtype": found.dtype.str, "offset": offset}


def _checked(found: object, kinds: str) -> h5py.Dataset:
    """The array itself, if it holds numbers of these kinds, here, about as many as are stored.

    kinds: of numpy's dtypes. Raises Refused if its numbers lie elsewhere, ValueError if it is no
    such array or declares far more than is stored.
    """
    if not isinstance(found, h5py.Dataset) or found.shape is None:
        raise ValueError("a group, where an array should be")
    if found.dtype.kind not in kinds or found.dtype.itemsize > 8:
        raise ValueError(f"{found.name} holds {found.dtype}, which are not the numbers expected")
    stored = _stored_virtually(found, kinds) if found.is_virtual else _stored(found)
    declared = math.prod(found.shape) * found.dtype.itemsize
    if declared > max(HARMLESS, MOST_RATIO * stored):
        raise ValueError(f"{found.name} declares {declared:,} bytes, of which it stores {stored:,}")
    return found


def _member(file: h5py.File, name: str) -> h5py.Group | h5py.Dataset:
    """The object of a name, which lies in the file itself.

    Raises Refused if a link leads out of the file, Absent if there is no such name.
    """
    found: h5py.Group | h5py.Dataset = file
    steps, soft = _steps(name), 0
    while steps:
        step = steps.pop(0)
        if not isinstance(found, h5py.Group) or not found.id.links.exists(step.encode()):
            raise Absent(f"nothing is named {name!r}")
        kind = found.id.links.get_info(step.encode()).type
        if kind == h5py.h5l.TYPE_HARD:
            found = found[step]
        elif kind == h5py.h5l.TYPE_SOFT and soft < DEPTH:
            soft += 1
            target = found.id.links.get_val(step.encode()).decode("utf-8", "replace")
            found = file if target.startswith("/") else found
            steps = [*_steps(target), *steps]
        else:
            raise _outside(name, "is a link to another place")
    return found


def _steps(name: str) -> list[str]:
    return [step for step in name.split("/") if step not in ("", ".")]


def _is_real(item: object) -> bool:
    if not isinstance(item, h5py.Dataset) or item.shape is None:
        return False
    return bool(item.dtype.kind == "f" and item.dtype.itemsize <= 8)


def _items(file: h5py.File, limited: bool) -> Iterator[tuple[str, h5py.Group | h5py.Dataset]]:
    """All objects that hard links lead to, by name, each once.

    limited: Raises Refused if they are more than anyone would look at.
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
            if limited and (len(seen) > OBJECTS or depth > DEPTH):
                raise Refused(
                    f"more than {OBJECTS:,} objects, or {DEPTH} groups in one another; name the "
                    "array with --dataset"
                )
            if isinstance(item, h5py.Group):
                waiting.append((item, f"{above}{name}/", depth + 1))
            yield f"{above}{name}", item


def _stored(array: h5py.Dataset) -> int:
    """Bytes that the file holds of an array."""
    if array.external:
        raise _outside(array.name, f"is stored in another file, {array.external[0][0]!r}")
    chunk = math.prod(array.chunks or ()) * array.dtype.itemsize
    if chunk > MOST_CHUNK:
        raise ValueError(f"{array.name} has chunks of {chunk:,} bytes, at most {MOST_CHUNK:,}")
    return int(array.id.get_storage_size())


def _stored_virtually(array: h5py.Dataset, kinds: str) -> int:
    stored = 0
    sources = {(source.file_name, source.dset_name) for source in array.virtual_sources()}
    for name, inner in sorted(sources):
        if name == ".":
            raise _outside(array.name, "is a virtual dataset of itself")
        beside = Path(array.file.filename).with_name(name) if _is_plain(name) else None
        if beside is None or not _is_file(beside):
            raise _outside(array.name, f"is a virtual dataset of {name!r}")
        with h5py.File(beside, "r") as file:
            part = _member(file, inner)
            if isinstance(part, h5py.Dataset) and part.is_virtual:
                raise _outside(array.name, f"is a virtual dataset of another, in {name!r}")
            stored += _stored(_checked(part, kinds))
    return stored


def _is_plain(name: str) -> bool:
    """Whether it names a file of the same folder, and no pattern of names as HDF5 knows them."""
    return name == Path(name).name and not {"/", "\\", "%", "\0"} & set(name) and name != ".."


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _outside(name: str, found: str) -> Refused:
    return Refused(
        f"{name} {found}; expected numbers in this file, or in files beside it under their plain "
        "names; copy them into one"
    )
