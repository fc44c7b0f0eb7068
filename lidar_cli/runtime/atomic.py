"""One way to write a file: whole under its name, or not at all.

The content goes to a new file of a random name in the same folder, which no link planted there can
redirect, and takes the final name once it is complete. A pipe, a device, or a descriptor such as
/dev/stdout is written directly.
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

from lidar_cli.runtime.files import irregular

TEMPORARY = re.compile(r"\.lidar-[0-9a-f]{16}\.tmp")


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """A file to write bytes to, which is at `path` once the block has ended without an error.

    What was there is replaced, a link too. An error or interrupt in the block leaves no trace.
    Raises OSError where the disk refuses.
    """
    if is_stream(path):
        with open_stream(path) as stream:
            yield stream
        return
    temporary = temporary_path(path)
    try:
        with open(temporary, "xb", opener=_exclusive) as file:
            yield file
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):  # where nothing can be written, nothing can be removed
            temporary.unlink()
        raise


def write_atomic(path: Path, content: bytes | memoryview) -> None:
    """Write a file whole or not at all. Raises OSError where the disk refuses."""
    with atomic(path) as file:
        file.write(content)


def temporary_path(path: Path) -> Path:
    """A new name in the folder of `path`; what is created there must be created exclusively."""
    return path.with_name(f".lidar-{secrets.token_hex(8)}.tmp")


def is_stream(path: Path) -> bool:
    """Whether a path names a pipe, a device or an open descriptor, which cannot be replaced."""
    return irregular(path) is not None or _descriptor(path) is not None


def open_stream(path: Path) -> BinaryIO:
    """A pipe, a device or a descriptor of this process, to write bytes to."""
    number = _descriptor(path)
    if number is None:
        return path.open("wb")
    sys.stdout.flush()  # what was printed comes first
    return os.fdopen(os.dup(number), "wb")


def _descriptor(path: Path) -> int | None:
    """Number of the descriptor that a path such as /dev/stdout stands for, None if it does not."""
    own = {Path("/proc/self/fd"), Path(f"/proc/{os.getpid()}/fd"), Path("/dev/fd")}
    names = [path.absolute()]
    with suppress(OSError):
        names.append(path.readlink())  # /dev/stdout -> /proc/self/fd/1
    for name in names:
        is_own = name.parent in own or name.parent.resolve() in own
        if is_own and re.fullmatch("[0-9]{1,9}", name.name):
            return int(name.name)
    return None


def _exclusive(name: str, mode: int) -> int:
    return os.open(name, mode | getattr(os, "O_NOFOLLOW", 0), 0o666)  # less the umask
