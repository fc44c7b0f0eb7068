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
TOKENS = re.compile(rf"{ESCAPES.pattern}|[\r\n]|[^\x1b\r\n]+")


def in_terminal(
    words: Sequence[object], cwd: Path, columns: int = 80, stdout: bool = True
) -> tuple[int, list[str]]:
    """The exit status and the lines that `lidar` leaves in a terminal, without colours.

    stdout: whether stdout is the terminal too; else only stderr is, and stdout is discarded.
    """
    status, written = written_in_terminal(words, cwd, columns, stdout)
    return status, shown(written)


def written_in_terminal(
    words: Sequence[object], cwd: Path, columns: int = 80, stdout: bool = True, term: str = "xterm"
) -> tuple[int, str]:
    """The exit status and all that `lidar` writes to a terminal. Arguments as `in_terminal`."""
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
    more = {"TERM": term, "COLUMNS": str(columns), "LINES": "50"}
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
    return status, b"".join(chunks).decode()


def shown(written: str) -> list[str]:
    """The lines that stay, as a terminal of any width moves its cursor and erases lines."""
    lines, row, column = [""], 0, 0
    for token in TOKENS.findall(written):
        if token == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif token == "\r":
            column = 0
        elif token.endswith("A") and token.startswith("\x1b"):
            row -= int(token[2:-1] or 1)
        elif token == "\x1b[2K":
            lines[row] = ""
        elif not token.startswith("\x1b"):
            before, after = lines[row][:column], lines[row][column + len(token) :]
            lines[row] = f"{before:{column}}{token}{after}"
            column += len(token)
    return [line.rstrip() for line in lines]
