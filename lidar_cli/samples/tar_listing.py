"""The files in a tar file, each with its place, so that any number of threads can read them."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lidar_cli.errors import first_line
from lidar_cli.runtime.files import open_regular
from lidar_cli.samples.listing import joined, suffix_of

MOST_OF_A_HEADER = 2**17  # bytes read to find one file: long names, extended attributes
MOST_DIGITS = 256  # in a row in an extended header; tarfile's search takes their square
DEEPEST = 4  # tar files in one another


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar file. name: of a tar file inside, less .tar, and of the file in it."""

    archive: Path
    name: str
    offset: int
    size: int
    is_link: bool = False

    def read(self) -> bytes:
        """Its bytes. Raises EOFError if the tar file ends before they do."""
        with open_regular(self.archive) as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) < self.size:
            raise EOFError("the tar file ends inside it")
        return content


def members(archive: Path, nested: bool = False) -> Iterator[Member]:
    """The files and links in a tar file, with `nested` also those of tar files in it.

    Raises tarfile.ReadError or OSError if it is damaged, also after the first file, where tarfile
    itself takes damage for the end.
    """
    with open_regular(archive) as file:
        window = _Headers(file, 0, archive.stat().st_size)
        yield from _members(archive, window, "", DEEPEST if nested else 0)


def _members(archive: Path, headers: _Headers, folder: str, depth: int) -> Iterator[Member]:
    tar = _read(lambda: tarfile.TarFile(fileobj=headers))  # type: ignore[arg-type]
    end = 0
    while True:
        headers.left = MOST_OF_A_HEADER
        member = _read(tar.next)
        tar.members = []  # it keeps all that it has read
        if member is None:
            break
        if member.size < 0 or member.offset_data < end:
            raise tarfile.ReadError(f"a file of {member.size} bytes at byte {member.offset}")
        end = member.offset_data
        if not (member.isfile() or member.islnk() or member.issym()):
            continue
        name, start = joined(folder, member.name), headers.start + member.offset_data
        is_link = not member.isfile()
        if depth and not is_link and suffix_of(name) == ".tar":
            inner = _Headers(headers.file, start, member.size)
            yield from _members(archive, inner, name[: -len(".tar")], depth - 1)
        else:
            yield Member(archive, name, start, member.size, is_link)
    headers.seek(tar.offset)
    if headers.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"damaged at byte {headers.start + tar.offset:,}")


def _read(step: Callable[[], Any]) -> Any:
    """A step of tarfile, which raises almost anything on headers made to do harm."""
    try:
        return step()
    except (tarfile.TarError, OSError):
        raise
    except Exception as error:
        raise tarfile.ReadError(first_line(error)) from error


class _Headers:
    """A tar file, or one inside another, of which tarfile reads the headers alone.

    left: bytes that may still be read; an end without bytes counts too, where tarfile may wait
    for more.
    """

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self.file = file
        self.start = start
        self.left = MOST_OF_A_HEADER
        self._size = size
        self._at = 0

    def tell(self) -> int:
        return self._at

    def seek(self, at: int) -> int:
        self._at = at
        return at

    def read(self, size: int) -> bytes:
        self.left -= max(size, tarfile.BLOCKSIZE)
        if self.left < 0:
            raise tarfile.ReadError(
                f"a header of more than {MOST_OF_A_HEADER:,} bytes before byte "
                f"{self.start + self._at:,}"
            )
        self.file.seek(self.start + self._at)
        content = self.file.read(max(0, min(size, self._size - self._at)))
        self._at += len(content)
        if any(len(digits) > MOST_DIGITS for digits in re.findall(rb"\d+", content)):
            raise tarfile.ReadError(f"a header with a number of more than {MOST_DIGITS} digits")
        return content
