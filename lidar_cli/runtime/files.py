"""Files that somebody else provided: opened only if they are files, and read up to a limit."""

from __future__ import annotations

import errno
import json
import os
import stat
import zipfile
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

LARGEST_TABLE = 64 * 2**20  # bytes of a table or settings file, which may be a pipe
KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a link",
}

_piped: dict[tuple[Path, int, int], bytes] = {}  # what pipes held that were read to their end


class NotAFile(OSError):
    """A path that leads to a pipe, a socket or a device, or is a link where none is allowed."""

    def __str__(self) -> str:
        return str(self.strerror)


def irregular(path: Path, follow: bool = True) -> str | None:
    """What a path leads to if that is neither a file nor a directory: 'a pipe', 'a device', ...

    follow: whether links are followed; else one is 'a link'. None for what cannot be reached.
    """
    try:
        mode = path.stat(follow_symlinks=follow).st_mode
    except (OSError, ValueError):
        return None
    return KINDS.get(stat.S_IFMT(mode))


def check_regular(path: Path, follow: bool = True) -> None:
    """Raise NotAFile for a pipe, a socket or a device, which a read might wait on for ever.

    For libraries that open a path themselves; what is missing is left to them.
    """
    kind = irregular(path, follow)
    if kind is not None:
        raise NotAFile(errno.EINVAL, f"{kind}, not a file", os.fspath(path))


def open_regular(path: Path, follow: bool = True) -> BufferedReader:
    """A file, opened for reading bytes. Raises NotAFile at once for anything that is no file.

    follow: whether links are followed. Raises OSError as `open`.
    """
    check_regular(path, follow)
    flags = getattr(os, "O_NONBLOCK", 0) | (0 if follow else getattr(os, "O_NOFOLLOW", 0))
    file = open(path, "rb", opener=lambda name, mode: os.open(name, mode | flags))  # noqa: SIM115
    kind = KINDS.get(stat.S_IFMT(os.fstat(file.fileno()).st_mode))
    if kind is not None:  # it was replaced since
        file.close()
        raise NotAFile(errno.EINVAL, f"{kind}, not a file", os.fspath(path))
    return file


def read_limited(path: Path, most: int = LARGEST_TABLE, follow: bool = True) -> bytes:
    """The content of a regular file of at most `most` bytes. Raises OSError if it is more."""
    with open_regular(path, follow) as file:
        return _read(file, path, most)


def read_named(path: Path, most: int = LARGEST_TABLE) -> bytes:
    """The content of a file, pipe or device that the user named. Raises OSError beyond `most`.

    What a pipe held is remembered, since it can be read once.
    """
    kind = irregular(path)
    status = path.stat()
    key = path, status.st_dev, status.st_ino
    if kind is None or key not in _piped:
        with path.open("rb") as file:
            content = _read(file, path, most)
        if kind is None:
            return content
        _piped[key] = content
    return _piped[key]


def _read(file: BinaryIO, path: Path, most: int) -> bytes:
    content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"more than {most / 2**20:g} MB", os.fspath(path))
    return content


def parse_json(text: str | bytes, constant: Callable[[str], Any] | None = None) -> Any:
    """The value of a JSON text. Raises ValueError, also for nesting deeper than Python can read.

    constant: makes the value of NaN, Infinity and -Infinity; None for floats.
    """
    try:
        return json.loads(text, parse_constant=constant)
    except RecursionError as error:
        raise ValueError("JSON that is nested too deep") from error


MAX_DIRECTORY = 16 << 20  # bytes, for hundreds of thousands of members


class TooLarge(ValueError):
    """The directory of a zip file is beyond measure."""


def open_zip(file: BinaryIO) -> zipfile.ZipFile:
    """The archive, its directory read. Raises TooLarge, and what `zipfile` raises.

    Members may be read through it in pieces of at most MAX_DIRECTORY.
    """
    return zipfile.ZipFile(_Bounded(file))


class _Bounded:
    """A file to `zipfile`, which reads a directory at once."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable
        self._file = file

    def read(self, count: int = -1) -> bytes:
        """As of a file; raises TooLarge."""
        content = self._file.read(MAX_DIRECTORY + 1 if count < 0 else min(count, MAX_DIRECTORY + 1))
        if len(content) > MAX_DIRECTORY:
            raise TooLarge(f"its zip directory has more than {MAX_DIRECTORY >> 20} MB")
        return content
