"""Files that grow at their end, by all of what is added or nothing, also on a full disk."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from lidar_cli.errors import SettingsError
from lidar_cli.runtime.atomic import is_stream, open_stream
from lidar_cli.runtime.files import parse_json


class Lines:
    """JSON lines in a file, one a checkpoint, each with its path and the key of its score.

    option: that named the file, or a pipe, from which nothing is read back.
    follow: whether that file may be a link.
    known: path and key of each line that was there before.
    Raises SettingsError for a file that holds something else or cannot be written.
    """

    def __init__(self, option: str, path: Path, follow: bool = True) -> None:
        self._path = path
        self._follow = follow
        try:
            self.known = frozenset(self._read())
        except OSError as error:
            raise SettingsError(f"{option} {path}: cannot be read: {error.strerror}") from error
        except (ValueError, LookupError, TypeError) as error:
            raise SettingsError(
                f"{option} {path}: holds a line that --watch did not write whole; "
                "remove it, or name another file"
            ) from error
        self._stream: BinaryIO | None = None
        try:
            if is_stream(path):
                self._stream = open_stream(path)  # once, since its reader ends when it is closed
            else:
                append(path, b"", follow)
        except OSError as error:
            raise SettingsError(f"{option} {path}: cannot be written: {error.strerror}") from error

    def add(self, told: dict[str, Any]) -> None:
        """Append a line, which holds path and key. Raises OSError."""
        line = f"{json.dumps(told, allow_nan=False)}\n".encode()
        if self._stream is None:
            append(self._path, line, self._follow)
        else:
            self._stream.write(line)
            self._stream.flush()

    def _read(self) -> Iterator[tuple[str, str]]:
        if is_stream(self._path) or not self._path.exists():
            return
        content = self._path.read_text(encoding="utf-8")
        for line in content.splitlines():
            told = parse_json(line)
            yield told["path"], told["key"]


def append(path: Path, content: bytes, follow: bool = True) -> None:
    """Add content to a file, made if need be, all of it or nothing.

    follow: whether `path` may be a link. Raises OSError.
    """
    flags = 0 if follow else getattr(os, "O_NOFOLLOW", 0)
    with open(path, "ab", 0, opener=lambda name, mode: os.open(name, mode | flags, 0o666)) as file:
        before, rest = os.fstat(file.fileno()).st_size, content
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            file.truncate(before)
            raise
