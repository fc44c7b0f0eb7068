"""What of an HDF5 file is read: nothing that lies elsewhere, nothing far larger than the file.

HDF5 opens by itself whatever other file a link, an external storage list or a virtual dataset
names. Links are therefore followed one step at a time, hard ones and soft ones alone, and a virtual
dataset is read only where its sources are plain arrays in files of the same folder.
"""

from __future__ import annotations

import math
import stat
from pathlib import Path

import h5py
import numpy as np

from lidar_cli.errors import FeatureFileError
from lidar_cli.features.child import handed_over
from lidar_cli.features.guard import DEPTH, OBJECTS, check_ends

MOST_CHUNK = 2**28  # bytes, since HDF5 unpacks a chunk whole
HARMLESS = 2**26  # bytes that an array may unpack to, however few are stored
TEXTS = 1024  # ids read at a time
LONGEST_TEXTS = 2**28  # characters of all ids together
MOST_RATIO = 200  # of bytes declared to bytes stored, which no embeddings reach


def has(group: h5py.Group, name: str) -> bool:
    """Whether a group has a link of this name, wherever it leads."""
    return bool(group.id.links.exists(name.encode()))


def member(file: h5py.File, name: str, path: Path) -> h5py.Group | h5py.Dataset:
    """The object of a name, which lies in the file itself.

    Raises FeatureFileError if a link leads out of the file, KeyError if there is no such name.
    """
    found: h5py.Group | h5py.Dataset = file
    steps, soft = _steps(name), 0
    while steps:
        step = steps.pop(0)
        if not isinstance(found, h5py.Group) or not has(found, step):
            raise KeyError(f"nothing is named {name!r}")
        kind = found.id.links.get_info(step.encode()).type
        if kind == h5py.h5l.TYPE_HARD:
            found = found[step]
        elif kind == h5py.h5l.TYPE_SOFT and soft < DEPTH:
            soft += 1
            target = found.id.links.get_val(step.encode()).decode("utf-8", "replace")
            found = file if target.startswith("/") else found
            steps = [*_steps(target), *steps]
        else:
            raise _outside(path, name, "is a link to another place")
    return found


def float_arrays(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Arrays of real numbers by name, as far as hard links lead to them.

    Raises FeatureFileError if the file has more objects than anyone would look at.
    """
    arrays: dict[str, h5py.Dataset] = {}
    seen = {file.id}
    waiting: list[tuple[h5py.Group, str, int]] = [(file, "", 0)]
    while waiting:
        group, above, depth = waiting.pop()
        for name in group:
            if group.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
                continue
            found = group[name]
            if found.id in seen:
                continue
            seen.add(found.id)
            if len(seen) > OBJECTS or depth > DEPTH:
                raise FeatureFileError(
                    f"{file.filename}: more than {OBJECTS:,} objects, or {DEPTH} groups in one "
                    "another; name the array with --dataset"
                )
            if isinstance(found, h5py.Group):
                waiting.append((found, f"{above}{name}/", depth + 1))
            elif _is_real(found):
                arrays[f"{above}{name}"] = found
    return arrays


def _is_real(found: object) -> bool:
    if not isinstance(found, h5py.Dataset) or found.shape is None:
        return False
    return bool(found.dtype.kind == "f" and found.dtype.itemsize <= 8)


def check_own(array: object, path: Path) -> h5py.Dataset:
    """The array itself, if each of its numbers has its final place in the file.

    Raises FeatureFileError or ValueError if writing into it would write elsewhere.
    """
    found = check_array(array, path, "fu")
    if found.is_virtual:
        raise _outside(path, found.name, "is a virtual dataset")
    if found.chunks:
        raise ValueError(f"{found.name} is stored in chunks, which an interrupted run never does")
    return found


def check_array(array: object, path: Path, kinds: str = "f") -> h5py.Dataset:
    """The array itself, if it holds numbers of these kinds, here, and about as many as stored.

    kinds: of numpy's dtypes. Raises FeatureFileError if its numbers lie elsewhere, ValueError if it
    is no such array or declares far more than is stored.
    """
    if not isinstance(array, h5py.Dataset) or array.shape is None:
        raise ValueError("a group, where an array should be")
    if array.dtype.kind not in kinds or array.dtype.itemsize > 8:
        raise ValueError(f"{array.name} holds {array.dtype}, which are not the numbers expected")
    stored = _stored_virtually(array, path, kinds) if array.is_virtual else _stored(array, path)
    declared = math.prod(array.shape) * array.dtype.itemsize
    if declared > max(HARMLESS, MOST_RATIO * stored):
        raise ValueError(f"{array.name} declares {declared:,} bytes, of which it stores {stored:,}")
    return array


def whole(array: object, path: Path, kinds: str) -> np.ndarray:
    """All numbers of an array that is short beside the rows. Raises as `check_array`."""
    found = check_array(array, path, kinds)
    if not in_chunks(found, path) or not found.size:
        return np.asarray(found[()])
    return handed_over(path, found.name, lambda: found[()], found.shape, found.dtype)


def texts_of(array: object) -> list[str]:
    """A list of texts that lie in the file as they are. Raises ValueError for any other array."""
    if not isinstance(array, h5py.Dataset) or array.shape is None or array.ndim != 1:
        raise ValueError("no list of texts, where the ids of samples should be")
    kind = h5py.check_string_dtype(array.dtype)
    plain = not (array.is_virtual or array.chunks or array.external)
    if kind is None or kind.length is not None or not plain:
        raise ValueError(f"{array.name} holds {array.dtype}, which are not the texts expected")
    texts: list[str] = []
    length = 0
    for start in range(0, len(array), TEXTS):
        texts += [text.decode("utf-8", "replace") for text in array[start : start + TEXTS]]
        length += sum(map(len, texts[start:]))
        if length > LONGEST_TEXTS:
            raise ValueError(f"{array.name} holds more than {LONGEST_TEXTS:,} characters")
    return texts


def in_chunks(array: h5py.Dataset, path: Path) -> bool:
    """Whether rows of a checked array lie in chunks, which may unpack to any size."""
    if not array.is_virtual:
        return array.chunks is not None
    for name, inner in sorted({(one.file_name, one.dset_name) for one in array.virtual_sources()}):
        with h5py.File(path.with_name(name), "r") as file:
            if file[inner].chunks:
                return True
    return False


def _stored(array: h5py.Dataset, path: Path) -> int:
    """Bytes that the file holds of an array."""
    if array.external:
        raise _outside(path, array.name, f"is stored in another file, {array.external[0][0]!r}")
    chunk = math.prod(array.chunks or ()) * array.dtype.itemsize
    if chunk > MOST_CHUNK:
        raise ValueError(f"{array.name} has chunks of {chunk:,} bytes, at most {MOST_CHUNK:,}")
    return int(array.id.get_storage_size())


def _stored_virtually(array: h5py.Dataset, path: Path, kinds: str) -> int:
    stored = 0
    sources = {(source.file_name, source.dset_name) for source in array.virtual_sources()}
    for name, inner in sorted(sources):
        if name == ".":
            raise _outside(path, array.name, "is a virtual dataset of itself")
        beside = path.with_name(name) if _is_plain(name) else None
        if beside is None or not _is_file(beside):
            raise _outside(path, array.name, f"is a virtual dataset of {name!r}")
        check_ends(beside)
        with h5py.File(beside, "r") as file:
            part = member(file, inner, beside)
            if isinstance(part, h5py.Dataset) and part.is_virtual:
                raise _outside(path, array.name, f"is a virtual dataset of another, in {name!r}")
            stored += _stored(check_array(part, beside, kinds), beside)
    return stored


def _is_plain(name: str) -> bool:
    """Whether it names a file of the same folder, and no pattern of names as HDF5 knows them."""
    return name == Path(name).name and not {"/", "\\", "%", "\0"} & set(name) and name != ".."


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _steps(name: str) -> list[str]:
    return [step for step in name.split("/") if step not in ("", ".")]


def _outside(path: Path, name: str, found: str) -> FeatureFileError:
    return FeatureFileError(
        f"{path}: {name} {found}; expected numbers in this file, or in files beside it under their "
        "plain names; copy them into one"
    )
