"""Atomic writes: a file appears complete under its name, or not at all.

The content is written to a new file with a random name in the same directory, which no planted
link can redirect; the file is renamed when it is complete. A pipe, a device, or a descriptor such
as /dev/stdout is written directly.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lidar_cli.runtime.files import irregular_kind

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
