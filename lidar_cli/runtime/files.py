"""Files: untrusted ones are opened if they are regular, and read up to a limit; writes are atomic.

An atomic write appears complete under its name, or not at all. The content is written to a new file
with a random name in the same directory, which no planted link can redirect; the file is renamed
when it is complete. A pipe, a device, or a descriptor such as /dev/stdout is written directly.
"""

from __future__ import annotations

import difflib
import errno
import json
import os
import re
import secrets
import stat
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from lidar_cli.errors import InputError

MAX_TABLE = 64 * 2**20  # bytes of a table or settings file, which may be a pipe
MAX_DIRECTORY = 16 << 20  # bytes of a zip directory, enough for hundreds of thousands of members
ENCRYPTED = 0x1  # in the flags of a zip member
LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of the name and of extra fields
MAX_NAMES = 10_000  # of a folder, among which the nearest to a mistyped one is looked for
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a link",
}

_piped: dict[tuple[Path, int, int], bytes] = {}  # contents of pipes, which can be read only once


class NotAFile(OSError):
    """The path is a pipe, a socket or a device, or a link where links are not allowed."""

    def __str__(self) -> str:
        return str(self.strerror)


def make_folder(folder: Path) -> None:
    """Create a folder, and those above it, that does not exist. Raises InputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_made(folder, error.errno) from error


def check_makeable(folder: Path) -> None:
    """Raise InputError as `make_folder`, as far as this shows without creating a folder."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise _not_made(folder, errno.ENOTDIR)
    if not os.access(nearest, os.W_OK):
        raise _not_made(folder, errno.EACCES)


def _not_made(folder: Path, number: int | None) -> InputError:
    return InputError(
        f"{folder}: cannot be created: {os.strerror(number or errno.EIO)}; name another folder",
        code="cannot-be-created",
    )


def irregular_kind(path: Path, follow: bool = True) -> str | None:
    """'a pipe', 'a device', ... for a path that is neither a file nor a directory, else None.

    None also for a path that does not exist. follow: whether links are followed; if not, a link is
    'a link'.
    """
    try:
        mode = path.stat(follow_symlinks=follow).st_mode
    except (OSError, ValueError):
        return None
    return KINDS.get(stat.S_IFMT(mode))


def check_regular(path: Path, follow: bool = True) -> None:
    """Raise NotAFile for a pipe, a socket or a device, on which a read might block for ever.

    For libraries that open a path themselves. A missing file raises nothing here.
    """
    kind = irregular_kind(path, follow)
    if kind is not None:
        raise NotAFile(errno.EINVAL, f"{kind}, not a file", os.fspath(path))


def open_regular(path: Path, follow: bool = True) -> BufferedReader:
    """A file opened for reading bytes. Raises NotAFile unless it is regular, OSError as `open`.

    follow: whether links are followed.
    """
    check_regular(path, follow)
    flags = getattr(os, "O_NONBLOCK", 0) | (0 if follow else getattr(os, "O_NOFOLLOW", 0))
    file = open(path, "rb", opener=lambda name, mode: os.open(name, mode | flags))  # noqa: SIM115
    kind = KINDS.get(stat.S_IFMT(os.fstat(file.fileno()).st_mode))
    if kind is not None:  # it was replaced after the check
        file.close()
        raise NotAFile(errno.EINVAL, f"{kind}, not a file", os.fspath(path))
    return file


def is_hdf5(path: Path) -> bool:
    """Whether a file is HDF5, also behind a user block. Raises OSError if it cannot be opened."""
    with open_regular(path) as file:
        at, end = 0, file.seek(0, 2)
        while at + len(HDF5_SIGNATURE) <= end:
            file.seek(at)
            if file.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE:
                return True
            at = max(512, 2 * at)
        return False


def did_you_mean(path: Path) -> str:
    """`; did you mean X?` for a path that does not exist, X the nearest that does; else "".

    X differs in the first name that does not exist, or else is the folder of that name alone.
    """
    if os.path.lexists(path):
        return ""
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    try:
        with os.scandir(missing.parent) as entries:
            names = [entry.name for entry in islice(entries, MAX_NAMES)]
    except OSError:
        return ""
    visible = [name for name in names if not name.startswith(".")]
    close = difflib.get_close_matches(missing.name, visible, n=MAX_NAMES)
    similar = [missing.parent / name for name in close]
    rest = path.relative_to(missing)
    complete = (one / rest for one in similar)
    nearest = next((one for one in (*complete, *similar) if one.exists()), None)
    if nearest is None:
        return ""
    return f"; did you mean {nearest}{'/' if nearest.is_dir() else ''}?"


def read_limited(path: Path, limit: int = MAX_TABLE, follow: bool = True) -> bytes:
    """The content of a regular file. Raises OSError if it exceeds `limit` bytes."""
    with open_regular(path, follow) as file:
        return _read(file, path, limit)


def read_named(path: Path, limit: int = MAX_TABLE) -> bytes:
    """The content of a file, pipe or device named by the user. Raises OSError beyond `limit`.

    The content of a pipe is remembered, because it can be read only once.
    """
    kind = irregular_kind(path)
    status = path.stat()
    key = path, status.st_dev, status.st_ino
    if kind is None or key not in _piped:
        with path.open("rb") as file:
            content = _read(file, path, limit)
        if kind is None:
            return content
        _piped[key] = content
    return _piped[key]


def _read(file: BinaryIO, path: Path, limit: int) -> bytes:
    content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"more than {limit / 2**20:g} MB", os.fspath(path))
    return content


def parse_json(text: str | bytes, constant: Callable[[str], Any] | None = None) -> Any:
    """The value of a JSON text. Raises ValueError, also if it is nested too deeply.

    constant: converts NaN, Infinity and -Infinity; by default to floats.
    """
    try:
        return json.loads(text, parse_constant=constant)
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error


ZipMembers = dict[str, tuple[zipfile.ZipInfo, int]]  # directory entry, and offset of the bytes


def open_zip(file: BinaryIO) -> tuple[zipfile.ZipFile, ZipMembers]:
    """An archive and its members by name; a read of more than MAX_DIRECTORY bytes is refused.

    Raises ValueError for a malformed directory, an encrypted or duplicate member, and a member
    outside the file.
    """
    try:
        archive = zipfile.ZipFile(_Bounded(file))
    except (MemoryError, ValueError):
        raise
    except Exception as error:  # zipfile raises many types for a malformed directory
        raise ValueError("its zip directory cannot be read") from error
    members: ZipMembers = {}
    total, end = 0, archive.start_dir  # the directory is stored after the members
    for info in archive.infolist():
        name = f"its member {info.filename[:60]}"
        if info.flag_bits & ENCRYPTED:
            raise ValueError(f"{name} is encrypted")
        if info.filename in members:
            raise ValueError(f"it has two members {info.filename[:60]}")
        inside = 0 <= info.header_offset < end  # zipfile shifts it, and may make it negative
        file.seek(info.header_offset if inside else 0)
        header = file.read(LOCAL_HEADER.size)
        if not inside or len(header) < LOCAL_HEADER.size:
            raise ValueError(f"{name} is outside the file")
        signature, name_length, extra_length = LOCAL_HEADER.unpack(header)
        start = info.header_offset + LOCAL_HEADER.size + name_length + extra_length
        total += info.compress_size
        if signature != b"PK\x03\x04" or start + info.compress_size > end or total > end:
            raise ValueError(f"{name} is outside the file")
        members[info.filename] = info, start
    return archive, members


class _Bounded:
    """A file that refuses large reads; `zipfile` reads a directory in one call."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable
        self._file = file

    def read(self, count: int = -1) -> bytes:
        """As `read` of a file; raises ValueError for more than MAX_DIRECTORY bytes."""
        content = self._file.read(MAX_DIRECTORY + 1 if count < 0 else min(count, MAX_DIRECTORY + 1))
        if len(content) > MAX_DIRECTORY:
            raise ValueError(f"its zip directory has more than {MAX_DIRECTORY >> 20} MB")
        return content


TEMPORARY = re.compile(r"\.lidar-[0-9a-f]{16}\.tmp")


@contextmanager
def atomic(path: Path, exclusive: bool = False) -> Iterator[BinaryIO]:
    """A file to write bytes to, which becomes `path` when the block ends without an error.

    A link at `path` is replaced too. Raises as `temporary_file`.
    """
    if is_stream(path):
        with open_stream(path) as stream:
            yield stream
        return
    with (
        temporary_file(path, exclusive) as temporary,
        open(temporary, "xb", opener=_exclusive) as file,
    ):
        yield file


def write_atomic(path: Path, content: bytes | memoryview) -> None:
    """Write a file atomically. Raises OSError if it cannot be written."""
    with atomic(path) as file:
        file.write(content)


@contextmanager
def temporary_file(path: Path, exclusive: bool = False) -> Iterator[Path]:
    """A new path in the directory of `path`; the block creates a file there.

    The file is renamed to `path` after the block. An error or interrupt in the block leaves `path`
    unchanged. The block must create the file exclusively (mode "x"). Raises OSError if it cannot be
    renamed, FileExistsError if `exclusive` and `path` exists by then.
    """
    temporary = path.with_name(f".lidar-{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        if exclusive:
            rename_exclusively(temporary, path)
        else:
            temporary.replace(path)
    except BaseException:
        with suppress(OSError):  # a read-only file system allows no removal either
            temporary.unlink()
        raise


def rename_exclusively(file: Path, name: Path) -> None:
    """Rename a file unless the name exists. Raises FileExistsError."""
    try:
        os.link(file, name)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if name.exists():
            raise FileExistsError(name) from None
        file.rename(name)
    else:
        file.unlink()


def is_stream(path: Path) -> bool:
    """Whether a path names a pipe, a device or an open descriptor, which cannot be replaced."""
    return irregular_kind(path) is not None or _descriptor(path) is not None


def open_stream(path: Path) -> BinaryIO:
    """A pipe, a device or a descriptor of this process, opened for writing bytes."""
    number = _descriptor(path)
    if number is None:
        return path.open("wb")
    sys.stdout.flush()  # so that earlier output comes first
    return os.fdopen(os.dup(number), "wb")


def _descriptor(path: Path) -> int | None:
    """The number of the descriptor that a path such as /dev/stdout names, else None."""
    folders = {Path("/proc/self/fd"), Path(f"/proc/{os.getpid()}/fd"), Path("/dev/fd")}
    names = [path.absolute()]
    with suppress(OSError):
        names.append(path.readlink())  # /dev/stdout -> /proc/self/fd/1
    for name in names:
        is_ours = name.parent in folders or name.parent.resolve() in folders
        if is_ours and re.fullmatch("[0-9]{1,9}", name.name):
            return int(name.name)
    return None


def _exclusive(name: str, mode: int) -> int:
    return os.open(name, mode | getattr(os, "O_NOFOLLOW", 0), 0o666)  # the umask applies
