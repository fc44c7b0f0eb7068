"""What HDF5 reads of a file beside its rows, read in a child process first.

HDF5 walks trees and lists whose addresses the file itself gives. Where these are damaged it may go
round in circles or crash, inside a call that nothing in Python interrupts; a child can be lost.
"""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import h5py

from lidar_cli.errors import FeatureFileError

SECONDS = 20  # of processor time for one file, where a sound one takes less than one
DEPTH = 32  # of groups in one another, and soft links in a row
OBJECTS = 10_000  # that are looked at in search of an array

Found = TypeVar("Found")
Stamp = tuple[int, ...]
_walked: set[Stamp] = set()  # files that came to an end, or that this process wrote


def check_ends(path: Path) -> None:
    """Raise FeatureFileError if HDF5 crashes on a file, or computes for more than SECONDS.

    That is found out where the system has `fork`. What else may be wrong with it is not told.
    """
    if _known(path):
        return
    _, ended = _walk_in_child([path])
    if ended == signal.SIGXCPU:
        told = f"HDF5 comes to no end with it within {SECONDS} s"
    elif ended:
        told = f"HDF5 crashes on it ({signal.Signals(ended).name})"
    else:
        vouch(path)
        return
    raise FeatureFileError(f"{path}: damaged: {told}; extract it again")


def walk_ahead(paths: Sequence[Path]) -> None:
    """Find out about many files at once, which `check_ends` tells of then: a child is not cheap."""
    waiting = [path for path in paths if not _known(path)]
    while waiting:
        count, ended = _walk_in_child(waiting)
        for path in waiting[:count]:
            vouch(path)
        waiting = waiting[count + 1 :] if ended else []


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


def _walk_in_child(paths: Sequence[Path]) -> tuple[int, int]:
    """How many of the files a child came to an end with, and the signal that ended it, or 0."""
    if not hasattr(os, "fork"):
        return len(paths), 0
    with warnings.catch_warnings():
        # From 3.12 on of threads that hold a lock; h5py's is taken over by the child, and no other
        # is asked for there.
        warnings.simplefilter("ignore", DeprecationWarning)
        read_end, write_end = os.pipe()
        child = os.fork()
    if child == 0:
        try:
            for path in paths:
                _limit()
                _walk(path)
                os.write(write_end, b".")
        finally:
            os._exit(0)
    os.close(write_end)
    count = 0
    with _reaped(child) as status:
        try:
            while some := os.read(read_end, 4096):
                count += len(some)
        finally:
            os.close(read_end)
    return count, os.WTERMSIG(status[0]) if os.WIFSIGNALED(status[0]) else 0


@contextmanager
def _reaped(child: int) -> Iterator[list[int]]:
    """Wait for a child at the end, whose status is then in the list; kill it on an interrupt."""
    status: list[int] = []
    try:
        yield status
        status.append(os.waitpid(child, 0)[1])
    finally:
        if not status:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _limit() -> None:
    import resource  # of systems that fork

    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    most = resource.getrlimit(resource.RLIMIT_CPU)[1]
    limit = int(used) + SECONDS
    limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _walk(path: Path) -> None:
    """Read all that lies before the rows of a feature file, or of an array in another file.

    What raises is left out, since a reader may pass it by.
    """
    file = _tried(h5py.File, path, "r")
    if file is None:
        return
    names: list[str] = _tried(list, file.attrs) or []
    for name in names:
        _tried(attribute, file, name)
    seen = {file.id}
    waiting: list[tuple[h5py.Group, int]] = [(file, 0)]
    while waiting:
        group, depth = waiting.pop()
        for name in _tried(list, group) or ():
            found = _tried(_follow, group, name)
            if found is None or found.id in seen or len(seen) > OBJECTS or depth > DEPTH:
                continue
            seen.add(found.id)
            if isinstance(found, h5py.Group):
                waiting.append((found, depth + 1))
            else:
                _tried(_look_at, found)


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
    except Exception:
        return None
