"""What must be read beside the numbers of a group: aliases, reasons, ties, warnings, as lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from lidar_cli.ranking.order import Group, Row, misleading
from lidar_cli.ranking.session import Ranking
from lidar_cli.report.scores import UPWARD
from lidar_cli.report.text import shown
from lidar_cli.scoring.compute import CORRECTED


@dataclass(frozen=True)
class Remark:
    """One line, and what kind of thing it says."""

    kind: Literal["same", "missing", "interval", "warning"]
    text: str

    def __str__(self) -> str:
        return f"warning: {self.text}" if self.kind == "warning" else self.text


def remarks(group: Group, ranking: Ranking) -> Iterator[Remark]:
    """Aliases, reasons of nulls, what intervals and ties mean, and warnings; each said once."""
    for row in group.rows:
        if row.aliases:
            also = ", ".join(shown(alias, ranking.directory) for alias in row.aliases)
            where = shown(row.path, ranking.directory)
            yield Remark("same", f"{where}: the same file as {also}")
    missing: dict[str, tuple[list[str], list[Row]]] = {}  # reason -> metrics, rows
    for row in group.rows:
        for metric, reason in row.score.notes.items():
            metrics, rows = missing.setdefault(reason, ([], []))
            metrics += [metric] if metric not in metrics else []
            rows += [row] if row not in rows else []
    for reason, (metrics, rows) in missing.items():
        yield Remark("missing", f"{_some(rows, ranking)}: no {', '.join(metrics)}: {reason}")
    yield from _confidence(group, ranking)
    told: dict[str, list[Row]] = {}  # a remark that holds for many rows is said once
    for row in group.rows:
        for kind in row.score.warnings:
            told.setdefault(kind, []).append(row)
    if any(misleading([group], ranking.by)):
        told.pop("noise", None)  # said of the group as a whole
    for kind, rows in told.items():
        yield Remark("warning", f"{_some(rows, ranking)}: {rows[0].score.warnings[kind]}")


def _confidence(group: Group, ranking: Ranking) -> Iterator[Remark]:
    """What +- and ties mean, and the reasons of values that have no interval."""
    name, level = ranking.by.name, f"{100 * ranking.level:g} %"
    counts = {sure.groups for row in group.rows if (sure := row.score.confidence) is not None}
    grouped = next((count for count in counts if count is not None), None)
    over = "samples" if grouped is None else f"{grouped} groups of samples"
    if any(row.interval.se is not None for row in group.rows):
        biased = f"; the value itself is {UPWARD}"
        yield Remark(
            "interval",
            f"+-: the {level} interval of {name} over {over}, at this n and q"
            + (biased if name in CORRECTED else ""),
        )
    if any(row.tied_with for row in group.rows):
        one = "sample" if grouped is None else "group"
        yield Remark(
            "interval",
            f"tied: the {level} interval of the difference, {one} by {one}, holds 0; it covers the "
            "draw of images, not the training seed",
        )
    noted: dict[str, list[Row]] = {}
    for row in group.rows:
        if row.interval.note is not None:
            noted.setdefault(row.interval.note, []).append(row)
    for note, rows in noted.items():
        yield Remark("interval", f"{_some(rows, ranking)}: {name}: {note}")
    unsure: dict[str, list[Row]] = {}
    for row in group.rows:
        if row.value is not None and row.interval.reason is not None:
            unsure.setdefault(row.interval.reason, []).append(row)
    for reason, rows in unsure.items():
        some = _some(rows, ranking)
        yield Remark("interval", f"{some}: no interval of {name}, and no ties: {reason}")


def _some(rows: Sequence[Row], ranking: Ranking) -> str:
    """The first of some rows by name, and how many more."""
    more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
    return shown(rows[0].path, ranking.directory) + more
