"""A zip file whose directory is read only if it is not beyond measure."""

from __future__ import annotations

import zipfile
from typing import BinaryIO

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
