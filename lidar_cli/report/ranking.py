"""A ranking to tables, JSON, CSV, Markdown or bare paths."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.text import Text

from lidar_cli.core.metrics import METRICS
from lidar_cli.errors import SettingsError
from lidar_cli.jobs.order import Group, Row
from lidar_cli.jobs.rank import Ranking
from lidar_cli.report.numbers import console, print_columns, text_of
from lidar_cli.report.scores import record
from lidar_cli.report.sure import tied_ranks, with_reach

DECIDING = {  # what groups differ in -> the option that makes them alike
    "views": "--views",
    "image size": "--image-size",
    "mask grid": "--views",
    "layer": "--layer",
    "d": "--layer",
    "n": "-n",
    "q": "-q",
    "samples": "--data",
    "seed": "--seed",
}


def check_single_group(ranking: Ranking) -> None:
    """Raise SettingsError if a single best checkpoint cannot be named."""
    if len(ranking.groups) > 1:
        differing = _differing(ranking.groups)
        options = ", ".join(dict.fromkeys(DECIDING[name] for name in differing if name in DECIDING))
        raise SettingsError(
            f"{len(ranking.groups)} groups of checkpoints are not comparable, they differ in "
            f"{', '.join(differing)}; make them alike with {options}, or rank them apart"
        )


def top(ranking: Ranking, count: int | None) -> Ranking:
    """The first `count` rows of each group, or all."""
    if count is None:
        return ranking
    groups = tuple(replace(group, rows=group.rows[:count]) for group in ranking.groups)
    return replace(ranking, groups=groups)


def to_json(ranking: Ranking) -> str:
    """The contract's object."""
    document = {
        "by": ranking.by.name,
        "direction": ranking.by.direction,
        "data": ranking.data,
        "groups": len(ranking.groups),
        "checkpoints": [
            {
                "group": at + 1,
                "rank": row.rank,
                "path": row.path,
                "aliases": list(row.aliases),
                "value": row.value,
                "reason": row.reason,
                "ci_low": row.interval.ci_low,
                "ci_high": row.interval.ci_high,
                "tied_with": list(row.tied_with),
                "metrics": _metrics(row),
            }
            for at, group in enumerate(ranking.groups)
            for row in group.rows
        ],
        "skipped": [{"path": left.path, "reason": left.reason} for left in ranking.skipped],
        "failed": [{"path": left.path, "reason": left.reason} for left in ranking.failed],
        "warnings": list(ranking.warnings),
        "correlation": None,
    }
    return json.dumps(document, indent=2, allow_nan=False)


def to_csv(ranking: Ranking) -> str:
    """A header and a line a checkpoint."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = ["n_samples", "n_views", "dim", "layer", "delta", *METRICS]
    sure = ["value", "ci_low", "ci_high", "tied_with"]
    writer.writerow(["group", "rank", "path", "by", *sure, *names])
    for at, group in enumerate(ranking.groups):
        for row in group.rows:
            values = [getattr(row.score, name) for name in names]
            told = [row.value, row.interval.ci_low, row.interval.ci_high, "; ".join(row.tied_with)]
            cells = [at + 1, row.rank, row.path, ranking.by.name, *told, *values]
            writer.writerow(["" if cell is None else cell for cell in cells])
    return out.getvalue()


def to_markdown(ranking: Ranking) -> str:
    """A table a group."""
    blocks = []
    for group in ranking.groups:
        headers = ["rank", "checkpoint", *METRICS]
        lines = [
            "| " + " | ".join(headers) + " |",
            "|" + "|".join([" ---: ", " :--- ", *[" ---: " for _ in METRICS]]) + "|",
        ]
        for row in group.rows:
            path = row.path.replace("|", "\\|")
            tied = tied_ranks(row, group.rows)
            place = f"{row.rank}, tied with {tied}" if tied else str(row.rank)
            cells = [place, path, *(_cell(row, name, ranking) for name in METRICS)]
            lines.append("| " + " | ".join(cells) + " |")
        blocks.append("\n".join([heading(group, ranking), "", *lines]))
    blocks += [f"Failed: {left.path}: {left.reason}" for left in ranking.failed]
    return "\n\n".join(blocks)


def to_paths(ranking: Ranking) -> str:
    """Paths alone, best first, one a line."""
    return "".join(f"{row.path}\n" for group in ranking.groups for row in group.rows)


def print_tables(ranking: Ranking) -> None:
    """An ordered table for each comparable group, then what failed or was skipped."""
    out = console()
    names = [ranking.by.name, *(name for name in METRICS if name != ranking.by.name)]
    for at, group in enumerate(ranking.groups):
        if at:
            out.print()
        out.print(Text(heading(group, ranking)))
        tied = [tied_ranks(row, group.rows) for row in group.rows]
        rows = [
            [
                str(row.rank),
                shown(row.path, ranking.directory),
                _cell(row, names[0], ranking),
                *([ranks] if any(tied) else []),
                *(_cell(row, name, ranking) for name in names[1:]),
            ]
            for row, ranks in zip(group.rows, tied, strict=True)
        ]
        headers = [names[0], *(["tied_with"] if any(tied) else []), *names[1:]]
        print_columns(out, ["rank", "checkpoint", *headers], rows, fixed=2)
        print_remarks(out, group, ranking)
    for left in ranking.failed:
        where = shown(left.path, ranking.directory)
        out.print(Text(f"failed: {where}: {left.reason}", style="red"))
    for left in ranking.skipped:
        where = shown(left.path, ranking.directory)
        out.print(Text(f"skipped: {where}: {left.reason}", style="dim"))
    for warning in ranking.warnings:
        out.print(Text(f"warning: {warning}", style="yellow"))


def shown(path: str, directory: str) -> str:
    """A path as the table shows it: below the directory that was ranked."""
    return str(Path(path).relative_to(directory)) if Path(path).is_relative_to(directory) else path


def print_remarks(out: Any, group: Group, ranking: Ranking) -> None:
    """Aliases, reasons of nulls and warnings of a group, one line each."""
    for row in group.rows:
        where = shown(row.path, ranking.directory)
        if row.aliases:
            also = ", ".join(shown(alias, ranking.directory) for alias in row.aliases)
            out.print(Text(f"{where}: the same file as {also}", style="dim"))
    missing: dict[str, tuple[list[str], list[Row]]] = {}  # reason -> metrics, rows
    for row in group.rows:
        for metric, reason in row.score.notes.items():
            metrics, rows = missing.setdefault(reason, ([], []))
            metrics += [metric] if metric not in metrics else []
            rows += [row] if row not in rows else []
    for reason, (metrics, rows) in missing.items():
        out.print(Text(f"{_some(rows, ranking)}: no {', '.join(metrics)}: {reason}"))
    for line in _confidence(group, ranking):
        out.print(Text(line))
    told: dict[str, list[Row]] = {}  # a remark that holds for many rows is said once
    for row in group.rows:
        for kind in row.score.warnings:
            told.setdefault(kind, []).append(row)
    for kind, rows in told.items():
        warning = rows[0].score.warnings[kind]
        out.print(Text(f"warning: {_some(rows, ranking)}: {warning}", style="yellow"))


def _confidence(group: Group, ranking: Ranking) -> Iterator[str]:
    """What +- and ties mean, and the reasons of values that have no interval, one line each."""
    name, level = ranking.by.name, f"{100 * ranking.level:g} %"
    if any(row.interval.se is not None for row in group.rows):
        yield f"+-: the {level} interval of {name} over samples, at this n and q"
    if any(row.tied_with for row in group.rows):
        yield f"tied: the {level} interval of the difference, sample by sample, holds 0"
    unsure: dict[str, list[Row]] = {}
    for row in group.rows:
        if row.value is not None and row.interval.reason is not None:
            unsure.setdefault(row.interval.reason, []).append(row)
    for reason, rows in unsure.items():
        yield f"{_some(rows, ranking)}: no interval of {name}, and no ties: {reason}"


def _some(rows: Sequence[Row], ranking: Ranking) -> str:
    """The first of some rows by name, and how many more."""
    more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
    return shown(rows[0].path, ranking.directory) + more


def heading(group: Group, ranking: Ranking) -> str:
    """What the checkpoints of a group have in common, in one line."""
    common = group.common
    count = len(group.rows)
    data = ", ".join(dict.fromkeys(str(row.score.data) for row in group.rows))
    recipe = common["views"]["name"] if common["views"] else "?"
    return (
        f"{count} checkpoint{'s' if count > 1 else ''} by {ranking.by.name} "
        f"({ranking.by.direction} is better)  layer {common['layer']}  n = {common['n']}  "
        f"q = {common['q']}  d = {common['d']}  views {recipe} {common['image size']} px  "
        f"delta = {common['delta']:g}  data: {data}"
    )


def _cell(row: Row, name: str, ranking: Ranking) -> str:
    """A metric's value, and its reach where it is the one that orders."""
    value = row.score.value(name)
    return with_reach(value, row.interval) if name == ranking.by.name else text_of(value)


def _metrics(row: Row) -> dict[str, Any]:
    told = record(row.score)
    return {key: value for key, value in told.items() if key not in ("file", "data")}


def _differing(groups: Sequence[Group]) -> list[str]:
    keys = groups[0].common
    return [key for key in keys if len({repr(group.common[key]) for group in groups}) > 1]
