"""Reads CSV files about checkpoints and matches their lines with checkpoints."""

from __future__ import annotations

import csv
import difflib
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from lidar_cli.errors import InputError, first_line
from lidar_cli.runtime.files import read_named

DELIMITERS = ",;\t"
# Control characters: no path or name needs them, and a terminal would act on them.
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# Other headings of a column, in lower case and without punctuation; the first in a header counts.
HEADINGS = {"path": ("path", "checkpoint", "ckpt", "file", "filename", "name", "run", "runname")}
# Of two of these headings none counts: they may be of different sets of images.
ACCURACY = re.compile(
    r"(val|valid|validation|test|eval|probe|linear|linearprobe|knn)?"
    r"(acc|accuracy|top1|acc1|top1acc|top1accuracy|acctop1|accuracytop1)"
)
CANDIDATES = 5  # checkpoints that a message about an ambiguous name lists
LONGEST_NAME = 300  # characters of a mistyped name that are compared with others


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

    `path` and `accuracy` may have other headings, such as `run` and `top1`. The delimiter is
    whichever of comma, semicolon and tab is most frequent in the header. The file may be a pipe.
    Raises InputError if it cannot be read, lacks a column, or has a line with more or fewer cells
    than the header.
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
    columns = tuple(lines[0] if lines else ())
    for name in needed:
        columns = _with_heading(columns, name, path)
    if len(set(columns)) < len(columns):
        raise InputError(f"{path}: two columns of its header have the same name")
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(columns):
            raise InputError(
                f"{path}: line {number} that is not empty has {len(line)} cells; "
                f"expected {len(columns)}, as in the header"
            )
    return Table(path, columns, tuple(dict(zip(columns, line, strict=True)) for line in lines[1:]))


def is_accuracy(heading: str) -> bool:
    """Whether a column with this heading holds accuracies."""
    return ACCURACY.fullmatch(_plain(heading)) is not None


def _plain(heading: str) -> str:
    return re.sub(r"[^a-z0-9]", "", heading.lower())


def _with_heading(columns: tuple[str, ...], name: str, path: Path) -> tuple[str, ...]:
    """The headings, with `name` in place of the one that means it.

    Raises InputError if none does, or two headings of accuracies could.
    """
    plain = [_plain(column) for column in columns]
    matches = [column for column in columns if column.lower() == name]
    if not matches and name == "accuracy":
        matches = [column for column in columns if is_accuracy(column)]
        if len(matches) > 1:
            raise InputError(
                f"{path}: {' and '.join(matches)[:200]} could each be the accuracy; give the one "
                "to use the heading accuracy"
            )
    if not matches:
        others = [other for other in HEADINGS.get(name, ()) if other in plain]
        matches = [columns[plain.index(other)] for other in others]
    if not matches:
        also = {"path": " (or checkpoint, file, name, run)", "accuracy": " (or acc, top1)"}
        raise InputError(
            f"{path}: no column {name!r}{also.get(name, '')}; its header is "
            f"{', '.join(columns)[:200] or 'empty'}"
        )
    return tuple(name if column == matches[0] else column for column in columns)


def match(
    table: Table,
    checkpoints: Iterable[tuple[str, Sequence[str]]],
    directory: str,
    names: Mapping[str, str] | None = None,
) -> tuple[dict[str, dict[str, str]], list[Unmatched]]:
    """Path of a checkpoint -> its line, and the lines that match none or several.

    The `path` of a line is absolute, or relative to the directory, or as `rank` prints it. If only
    one checkpoint has them, it is also its file name, with or without extension, or some folders of
    its path, such as that of its run. checkpoints: path and aliases of each. names: short names.
    Raises InputError if two lines name the same checkpoint.
    """
    by_path: dict[str, str] = {}  # every way to write a path -> the checkpoint
    by_part: dict[str, set[tuple[str, str]]] = {}  # file name or folder -> checkpoint, its path
    names = names or {}
    for path, aliases in checkpoints:
        for name in (path, *aliases):
            for written in (name, str(Path(name).absolute()), os.path.relpath(name, directory)):
                by_path[os.path.normpath(written)] = path
            for part in _parts(name):
                by_part.setdefault(part, set()).add((path, name))
    by_path = {names.get(path, path): path for path in by_path.values()} | by_path
    lines: dict[str, dict[str, str]] = {}
    unmatched: list[Unmatched] = []
    for row in table.rows:
        written = os.path.normpath(row["path"]) if row["path"] else ""
        matches = [by_path[written]] if written in by_path else _with_parts(row["path"], by_part)
        if len(matches) != 1:
            reason = _reason(matches, names, directory)
            if not reason:
                near = by_path if len(unmatched) < CANDIDATES else ()
                reason = _no_such(row["path"], near)
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


def _parts(path: str) -> list[str]:
    """The folders of a path, its file name, and this without extension and step."""
    parts = PurePath(path).parts
    stem = parts[-1].removesuffix(".tar")
    stem = stem.rpartition(".")[0] if "." in stem else stem
    return [*parts, stem, re.sub(r"(epoch=\d+)-step=\d+", r"\1", stem)]


def _with_parts(text: str, by_part: Mapping[str, set[tuple[str, str]]]) -> list[str]:
    """The checkpoints with a path that has these parts, in this order."""
    wanted = PurePath(text).parts
    candidates = [by_part.get(part, set()) for part in wanted]
    matches = set()
    for checkpoint, path in set.intersection(*candidates) if candidates else ():
        rest = iter(_parts(path))
        if all(part in rest for part in wanted):
            matches.add(checkpoint)
    return sorted(matches)


def _no_such(written: str, names: Iterable[str]) -> str:
    """Why a line is not used whose name no checkpoint has, with the name that is nearest."""
    text = "no such checkpoint"
    close = difflib.get_close_matches(written[:LONGEST_NAME], list(names), n=1, cutoff=0.7)
    return f"{text}; did you mean {close[0]}?" if close else text


def _reason(matches: Sequence[str], names: Mapping[str, str], directory: str) -> str:
    """Which checkpoints have the name of a line; empty if none has."""
    if not matches:
        return ""
    texts = [names.get(path) or os.path.relpath(path, directory) for path in matches[:CANDIDATES]]
    more = f" and {len(matches) - CANDIDATES} more" if len(matches) > CANDIDATES else ""
    return f"{len(matches)} checkpoints have this name: {', '.join(texts)}{more}"
