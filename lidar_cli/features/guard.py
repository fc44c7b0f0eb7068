"""What HDF5 reads of a file beside its rows, read in a child process first.

What the child came to an end with, in time and memory, is then read here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import h5py

from lidar_cli.errors import FeatureFileError
from lidar_cli.features import child
from lidar_cli.runtime.files import irregular

DEPTH = 32  # of groups in one another, and soft links in a row
OBJECTS = 10_000  # that are looked at in search of an array
# Asked for by name, also where damage keeps the names from being listed.
ATTRIBUTES = ("format", "version", "provenance", "share")
ENDED, UNLISTED, SWELLED = b"e", b"u", b"s"  # what is told of a file
WHY = {
    UNLISTED: "its groups cannot be listed",  # but HDF5 would look up a name in them
    SWELLED: "HDF5 asks for gigabytes to read it",
}
NO_MEMORY = "memory allocation failed"  # in HDF5's words

Found = TypeVar("Found")
Stamp = tuple[int, ...]
_walked: set[Stamp] = set()  # files that came to an end, or that this process wrote


def check_ends(path: Path) -> None:
    """Raise FeatureFileError if HDF5 crashes on a file, computes for too long, or swells.

    That is found out where the system has `fork`. What else may be wrong with it is not told.
    Raises InputError if the child that was to find out could not.
    """
    if _known(path):
        return
    told, by = _walk_in_child([path])
    if told == ENDED:
        vouch(path)
        return
    why = WHY[told] if told in WHY else child.fault(path, by, child.SECONDS)
    raise FeatureFileError(f"{path}: damaged: {why}; extract it again")


def walk_ahead(paths: Sequence[Path]) -> None:
    """Find out about many files at once, which `check_ends` tells of then: a child is not cheap."""
    waiting = [path for path in paths if irregular(path) is None and not _known(path)]
    while waiting:
        told, by = _walk_in_child(waiting)
        for path, one in zip(waiting, told, strict=False):
            if one == ENDED[0]:
                vouch(path)
        waiting = waiting[len(told) + 1 :] if by else []


def attribute(file: h5py.File, name: str) -> object:
    """The value of a file's attribute; None where it has none, or more than one value."""
    if name not in file.attrs or file.attrs.get_id(name).shape != ():
        return None  # thousands of texts may be one that is stored once
    return file.attrs[name]


def vouch(path: Path) -> None:
    """Take a file, as it is now, for one that HDF5 comes to an end with."""
    with suppress(OSError):
        _walked.add(_stamp(path))


def _known(path: Path) -> bool:
    try:
        return _stamp(path) in _walked
    except OSError:
        return True  # opening it tells why


def _stamp(path: Path) -> Stamp:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _walk_in_child(paths: Sequence[Path]) -> tuple[bytes, int]:
    """A byte for each file that a child came to an end with, and the signal that ended it, or 0."""
    if not hasattr(os, "fork"):
        return ENDED * len(paths), 0

    def walk(sink: int) -> None:
        for path in paths:
            child.limit(child.SECONDS, child.ROOM)
            try:
                told = ENDED if _walk(path) else UNLISTED
            except MemoryError:
                told = SWELLED
            os.write(sink, told)

    return child.in_child(walk)


def _walk(path: Path) -> bool:
    """Read all that lies before the rows of a feature file, or of an array in another file.

    What raises is left out, since a reader may pass it by. Whether every group could be listed, or
    the file be opened at all. Raises MemoryError.
    """
    file = _tried(h5py.File, path, "r")
    if file is None:
        return True
    for name in {*ATTRIBUTES, *(_tried(list, file.attrs) or ())}:
        _tried(attribute, file, name)
    seen = {file.id}
    waiting: list[tuple[h5py.Group, int]] = [(file, 0)]
    while waiting:
        group, depth = waiting.pop()
        names: list[str] | None = _tried(list, group)
        if names is None:
            return False
        for name in names:
            found = _tried(_follow, group, name)
            if found is None or found.id in seen or len(seen) > OBJECTS or depth > DEPTH:
                continue
            seen.add(found.id)
            if isinstance(found, h5py.Group):
                waiting.append((found, depth + 1))
            else:
                _tried(_look_at, found)
    return True


def _follow(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset | None:
    """What a hard link leads to."""
    kind = group.id.links.get_info(name.encode()).type
    if kind == h5py.h5l.TYPE_SOFT:
        group.id.links.get_val(name.encode())
    return group[name] if kind == h5py.h5l.TYPE_HARD else None


def _look_at(array: h5py.Dataset) -> object:
    # The size is found by a walk through the whole index of the chunks.
    read = array.virtual_sources if array.is_virtual else array.id.get_storage_size
    return array.shape, array.dtype, array.external, array.chunks, read()


def _tried(read: Callable[..., Found], *arguments: object) -> Found | None:
    try:
        return read(*arguments)
    except MemoryError:
        raise
    except Exception as error:
        if NO_MEMORY in str(error):
            raise MemoryError from error
        return None
