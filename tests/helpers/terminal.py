"""What a command shows in a pseudo-terminal of a given width."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
import threading
from collections.abc import Sequence
from pathlib import Path

from command import Command
from make import environment

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def in_terminal(
    words: Sequence[object], cwd: Path, columns: int = 80, stdout: bool = True
) -> tuple[int, list[str]]:
    """The exit status and the lines that `lidar` leaves in a terminal, without colours.

    stdout: whether stdout is the terminal too; else only stderr is, and stdout is discarded.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    chunks: list[bytes] = []

    def read() -> None:
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # the last writer has closed it
                return
            if not chunk:
                return
            chunks.append(chunk)

    reader = threading.Thread(target=read)
    more = {"TERM": "xterm", "COLUMNS": str(columns), "LINES": "50"}
    null = os.open(os.devnull, os.O_WRONLY)
    with Command(
        words, cwd, environment(**more), stdout=theirs if stdout else null, stderr=theirs
    ) as running:
        reader.start()
        status = running.wait(120)
    os.close(theirs)
    os.close(null)
    reader.join()
    os.close(ours)
    return status, shown(b"".join(chunks).decode())


def shown(written: str) -> list[str]:
    """The lines that stay: of a line that was written over, what was written last."""
    lines = []
    for line in ESCAPES.sub("", written).split("\n"):
        lines.append(line.rstrip("\r").rpartition("\r")[2].rstrip())
    return lines
