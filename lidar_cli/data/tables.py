"""Reads CSV files about checkpoints and matches their lines with checkpoints."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lidar_cli.errors import InputError, first_line
from lidar_cli.runtime.files import read_named

DELIMITERS = ",;\t"
# Control characters: no path or name needs them, and a terminal would act on them.
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Table:
    """A CSV file with a header."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]  # column -> text, without spaces around it


@dataclass(frozen=True)
class Unmatched:
    """A line that names no checkpoint, or more than one."""

    path: str
    reason: str


def read_table(path: Path, needed: Sequence[str]) -> Table:
    """The content of a CSV file whose header has the `needed` columns, in upper or lower case.

    The delimiter is whichever of comma, semicolon and tab is most frequent in the header. The file
    may be a pipe. Raises InputError if it cannot be read, lacks a column, or has a line with more
    or fewer cells than the header.
    """
    try:
        file = io.StringIO(read_named(path).decode("utf-8-sig"), newline="")
        header = file.readline()
        file.seek(0)
        lines = list(csv.reader(file, delimiter=max(DELIMITERS, key=header.count), strict=True))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{path}: not a CSV file in UTF-8: {first_line(error)}; expected a header with "
            f"{' and '.join(needed)}"
        ) from error
    lines = [[cell.strip() for cell in line] for line in lines if any(map(str.strip, line))]
    for number, line in enumerate(lines, 1):
        if any(map(CONTROLS.search, line)):
            raise InputError(f"{path}: line {number} that is not empty has a control character")
    columns = tuple(
        name.lower() if name.lower() in needed else name for name in (lines[0] if lines else ())
    )
    for name in needed:
        if name not in columns:
            raise InputError(
                f"{path}: no column {name!r}; its header is {', '.join(columns)[:200] or 'empty'}"
            )
    if len(set(columns)) < len(columns):
        raise InputError(f"{path}: two columns of its header have the same name")
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(columns):
            raise InputError(
                f"{path}: line {number} that is not empty has {len(line)} cells; "
                f"expected {len(columns)}, as in the header"
            )
    return Table(path, columns, tuple(dict(zip(columns, line, strict=True)) for line in lines[1:]))


def match(
    table: Table, checkpoints: Iterable[tuple[str, Sequence[str]]], directory: str
) -> tuple[dict[str, dict[str, str]], list[Unmatched]]:
    """Path of a checkpoint -> its line, and the lines that match none or several.

    The `path` of a line is absolute, or relative to the directory, or as `rank` prints it, or the
    file name of a single checkpoint. checkpoints: path and aliases of each.
    Raises InputError if two lines name the same checkpoint.
    """
    by_path: dict[str, str] = {}  # every way to write a path -> the checkpoint
    by_name: dict[str, set[str]] = {}  # file name -> checkpoints
    for path, aliases in checkpoints:
        for name in (path, *aliases):
            for written in (name, str(Path(name).absolute()), os.path.relpath(name, directory)):
                by_path[os.path.normpath(written)] = path
            by_name.setdefault(Path(name).name, set()).add(path)
    lines: dict[str, dict[str, str]] = {}
    unmatched = []
    for row in table.rows:
        written = os.path.normpath(row["path"]) if row["path"] else ""
        matches = {by_path[written]} if written in by_path else by_name.get(row["path"], set())
        if len(matches) != 1:
            reason = (
                f"{len(matches)} checkpoints have this name" if matches else "no such checkpoint"
            )
            unmatched.append(Unmatched(row["path"], reason))
            continue
        (path,) = matches
        if path in lines:
            raise InputError(
                f"{table.path}: {row['path']} and {lines[path]['path']} are the same checkpoint",
                code="same-checkpoint",
            )
        lines[path] = row
    return lines, unmatched
