"""Reads CSV files about checkpoints and matches their lines with checkpoints.

Besides a line per checkpoint or run, with any headings of HEADINGS and ACCURACY, these are read:

    runs of W&B        Name, State, Created, ..., lr, val/acc
    charts of W&B      Step, RUN - val/acc, RUN - val/acc__MIN, RUN - val/acc__MAX: the last value
    runs of MLflow     run_id, artifact_uri, metrics.accuracy, params.lr, tags.mlflow.runName
                       Start Time, Duration, Run ID, Name, Source Type, ..., lr, accuracy
    long tables        checkpoint, metric, value
"""

from __future__ import annotations

import csv
import difflib
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Literal

from lidar_cli.errors import InputError, first_line
from lidar_cli.runtime.files import read_named

DELIMITERS = ",;\t"
# Control characters: no path or name needs them, and a terminal would act on them.
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# Other headings of a column, in lower case and without punctuation; the first in a header counts,
# or of a path the first whose texts name a checkpoint.
HEADINGS = {
    "path": (
        *("path", "checkpoint", "ckpt", "file", "filename", "name", "run", "runname"),
        *("tagsmlflowrunname", "runid", "id"),
    )
}
# Of two of these headings none counts: they may be of different sets of images.
ACCURACY = re.compile(
    r"(metrics?)?(val|valid|validation|test|eval|probe|linear|linearprobe|knn)?"
    r"(acc|accuracy|top1|acc1|top1acc|top1accuracy|acctop1|accuracytop1)"
)
LONG = ("metric", "value")  # headings of a table with a line per checkpoint and metric
BETWEEN = " - "  # run and metric in the headings of a chart that W&B exports
SPREAD = ("__MIN", "__MAX")  # further columns of each
EMPTY = ("", "nan")  # cells without a value, in lower case
CANDIDATES = 5  # checkpoints that a message about an ambiguous name lists
Layout = Literal["", "W&B", "W&B chart", "MLflow", "long"]
LONGEST_NAME = 300  # characters of a mistyped name that are compared with others


@dataclass(frozen=True)
class Table:
    """A CSV file with a header, as a line per checkpoint or run.

    rows: heading -> text, without spaces around it; `path` and `accuracy`, if needed, -> the text
    under the first of their `headings`. layout: of an export or a long table, in which cells may be
    empty.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]
    headings: Mapping[str, tuple[str, ...]]
    layout: Layout = ""

    def by_heading(self) -> Iterator[Table]:
        """This table with the `path` of each heading that may name checkpoints."""
        for heading in self.headings["path"]:
            rows = tuple(row | {"path": row[heading]} for row in self.rows)
            yield replace(self, rows=rows, headings={**self.headings, "path": (heading,)})

    def origin(self) -> str:
        """Which columns are used and how, in words; empty if they have the usual headings."""
        parts = [
            f"{what} {headings[0]!r}"
            for what, name in (("checkpoints by", "path"), ("accuracy", "accuracy"))
            if (headings := self.headings.get(name)) and headings[0].lower() != name
        ]
        if self.layout == "W&B chart":
            parts.append("the last value of each run")
        return ", ".join(parts)


@dataclass(frozen=True)
class Unmatched:
    """A line that names no checkpoint, or more than one."""

    path: str
    reason: str


def read_table(path: Path, needed: Sequence[str]) -> Table:
    """The content of a CSV file whose header has the `needed` columns, in upper or lower case.

    `path` and `accuracy` may have other headings, such as `run` and `top1`, and the table another
    layout, as an export. The delimiter is whichever of comma, semicolon and tab is most frequent in
    the header. The file may be a pipe.
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
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(columns):
            raise InputError(
                f"{path}: line {number} that is not empty has {len(line)} cells; "
                f"expected {len(columns)}, as in the header"
            )
    layout = _layout(columns) if "path" in needed else ""
    rows = lines[1:]
    if layout == "W&B chart":
        columns, rows = _last_values(columns, rows)
    elif layout == "long":
        columns, rows = _line_per_checkpoint(columns, rows, path)
    headings = {name: _headings(columns, name, path) for name in needed}
    if len(set(columns)) < len(columns):
        raise InputError(f"{path}: two columns of its header have the same name")
    cells = (dict(zip(columns, row, strict=True)) for row in rows)
    return Table(
        path,
        columns,
        tuple(row | {name: row[each[0]] for name, each in headings.items()} for row in cells),
        headings,
        layout,
    )


def accuracies_of(table: Table) -> tuple[dict[str, float], str]:
    """Accuracies between 0 and 1, by the path of their line, and how they were read.

    They are percent if one of them has a % or exceeds 1. An export may have none for a run.
    Raises InputError for a text that is no number, and for a number out of range.
    """
    numbers: dict[str, float] = {}
    is_percent = False
    for row in table.rows:
        text = row["accuracy"]
        if table.layout and text.lower() in EMPTY:
            continue
        try:
            numbers[row["path"]] = float(text.removesuffix("%"))
        except ValueError as error:
            raise InputError(
                f"{table.path}: {row['path'][:100]}: accuracy {text[:50]!r} is not a number"
            ) from error
        is_percent |= text.endswith("%") or numbers[row["path"]] > 1
    for path, number in numbers.items():
        if not 0 <= number <= (100 if is_percent else 1):
            raise InputError(
                f"{table.path}: {path[:100]}: accuracy {number:g}; expected 0 to 1, or 0 to 100 %"
            )
    scale, unit = (100, "percent") if is_percent else (1, "shares of 1")
    method = ", ".join(filter(None, [table.origin(), f"read as {unit}"]))
    return {path: number / scale for path, number in numbers.items()}, method


def groups_of(table: Table) -> dict[str, str]:
    """The group of each sample, by its id. Raises InputError for a sample in two groups."""
    groups: dict[str, str] = {}
    for row in table.rows:
        if groups.setdefault(row["id"], row["group"]) != row["group"]:
            raise InputError(
                f"{table.path}: the sample {row['id'][:100]!r} is in two groups",
                code="sample-in-two-groups",
            )
    return groups


def _layout(columns: Sequence[str]) -> Layout:
    """What the headings show that a file is."""
    plain = set(map(_plain, columns))
    if len(columns) > 1 and all(BETWEEN in column for column in columns[1:]):
        return "" if plain & set(HEADINGS["path"]) else "W&B chart"
    if len(columns) == 3 and plain.issuperset(LONG):
        return "long"
    if plain.issuperset(("name", "state")):
        return "W&B"
    return "MLflow" if "runid" in plain else ""


def _last_values(
    columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[tuple[str, ...], list[list[str]]]:
    """Headings and a line per run of a chart, with the last value of each metric."""
    values: dict[str, dict[str, str]] = {}
    for at, heading in enumerate(columns[1:], 1):
        run, _, metric = heading.rpartition(BETWEEN)
        if not metric.endswith(SPREAD) and not metric.startswith("_"):
            filled = [row[at] for row in rows if row[at].lower() not in EMPTY]
            values.setdefault(run, {})[metric] = filled[-1] if filled else ""
    return _wide("run", values)


def _line_per_checkpoint(
    columns: Sequence[str], rows: Sequence[Sequence[str]], path: Path
) -> tuple[tuple[str, ...], list[list[str]]]:
    """Headings and a line per checkpoint of a long table.

    Raises InputError if a metric of a checkpoint has two lines.
    """
    plain = list(map(_plain, columns))
    metric, value = map(plain.index, LONG)
    (name,) = {0, 1, 2} - {metric, value}
    values: dict[str, dict[str, str]] = {}
    for row in rows:
        of_checkpoint = values.setdefault(row[name], {})
        if row[metric] in of_checkpoint:
            raise InputError(
                f"{path}: {row[name][:100]} has two lines of {row[metric][:100]!r}; expected one"
            )
        of_checkpoint[row[metric]] = row[value]
    return _wide(columns[name], values)


def _wide(
    name: str, values: Mapping[str, Mapping[str, str]]
) -> tuple[tuple[str, ...], list[list[str]]]:
    """Headings, the first one `name`, and a line per key. values: key -> metric -> text."""
    metrics = list(dict.fromkeys(metric for each in values.values() for metric in each))
    lines = [[key, *(each.get(metric, "") for metric in metrics)] for key, each in values.items()]
    return (name, *metrics), lines


def is_accuracy(heading: str) -> bool:
    """Whether a column with this heading holds accuracies."""
    return ACCURACY.fullmatch(_plain(heading)) is not None


def _plain(heading: str) -> str:
    return re.sub(r"[^a-z0-9]", "", heading.lower())


def _headings(columns: Sequence[str], name: str, path: Path) -> tuple[str, ...]:
    """The headings that mean `name`, the first one first; several only for `path`.

    Raises InputError if none does, or two headings of accuracies could.
    """
    plain = [_plain(column) for column in columns]
    matches = [column for column in columns if column.lower() == name]
    if len(matches) > 1:
        raise InputError(f"{path}: two columns of its header have the same name")
    if not matches and name == "accuracy":
        matches = [column for column in columns if is_accuracy(column)]
        if len(matches) > 1:
            raise InputError(
                f"{path}: {' and '.join(matches)[:200]} could each be the accuracy; call the one "
                "to use accuracy"
            )
    others = [columns[plain.index(one)] for one in HEADINGS.get(name, ()) if one in plain]
    matches += [other for other in others if other not in matches]
    if not matches:
        also = {"path": " (or checkpoint, file, name, run)", "accuracy": " (or acc, top1)"}
        raise InputError(
            f"{path}: no column {name!r}{also.get(name, '')}; its header is "
            f"{', '.join(columns)[:200] or 'empty'}"
        )
    return tuple(matches)


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
