"""Writes results to stdout and remarks to stderr, whatever the encoding and state of the streams.

A character that the encoding of a stream lacks is written as an escape, such as `caf\\xe9`. A
failed write to stdout raises InputError; a failed write to stderr is ignored, and the program
continues.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from lidar_cli.errors import InputError, printable

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
REMEDIES = {
    errno.EPIPE: "its reader ended before all was written",
    errno.EBADF: "it is closed",
} | dict.fromkeys(DISK_ERRORS, "free some space")


@contextmanager
def safe_streams() -> Iterator[None]:
    """Replace `sys.stdout` and `sys.stderr` by `_SafeStream`s while the block runs."""
    originals = sys.stdout, sys.stderr
    _occupy_closed_descriptors()
    sys.stdout = cast(TextIO, _SafeStream(originals[0] or _opened(1), _raise_input_error))
    sys.stderr = cast(TextIO, _SafeStream(originals[1] or _opened(2), _ignore))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = originals


def write_results(content: str | bytes) -> None:
    """Write to stdout and flush: bytes unchanged, text with a final line end.

    Raises InputError if stdout cannot be written.
    """
    if isinstance(content, bytes):
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    else:
        sys.stdout.write(content if content.endswith("\n") else f"{content}\n")
        sys.stdout.flush()


def write_remark(text: str) -> None:
    """Write one line to stderr, with control characters escaped."""
    sys.stderr.write(f"{printable(text)}\n")


class _SafeStream:
    """A stream, or its binary buffer. handle: called with the stream and an OSError of a write."""

    def __init__(self, stream: Any, handle: Callable[[Any, OSError], None]) -> None:
        self._stream = stream
        self._handle = handle

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def buffer(self) -> _SafeStream:
        return _SafeStream(self._stream.buffer, self._handle)

    def write(self, content: Any) -> int:
        try:
            return int(self._stream.write(_encodable(content, self._stream)))
        except OSError as error:
            self._handle(self._stream, error)
            return len(content)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._handle(self._stream, error)


def _raise_input_error(stream: Any, error: OSError) -> None:
    with suppress(OSError, ValueError):
        # Python would flush the rest of the buffer at exit, and fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    remedy = REMEDIES.get(error.errno or 0, "redirect it to a file")
    raise InputError(f"stdout cannot be written: {error.strerror}; {remedy}") from error


def _ignore(stream: Any, error: OSError) -> None:
    """Do nothing: a remark that cannot be written must not end the program."""


def _encodable(content: Any, stream: Any) -> Any:
    """The content, with escapes for characters that the stream cannot encode."""
    if not isinstance(content, str):
        return content
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return content.encode(encoding, "backslashreplace").decode(encoding)


def _occupy_closed_descriptors() -> None:
    """Open the null device on closed standard descriptors, so that no other file gets them."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # os.open returns the lowest free number, which is this one
            os.set_inheritable(os.open(os.devnull, os.O_RDONLY), True)


def _opened(number: int) -> TextIO:
    """A stream on a descriptor that was closed when Python started; writing to it fails."""
    return open(number, "w", encoding="utf-8", closefd=False)
