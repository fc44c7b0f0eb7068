"""A ranking to tables, JSON, CSV, Markdown or bare paths."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console

from lidar_cli.core.metrics import METRICS
from lidar_cli.errors import SettingsError, printable
from lidar_cli.ranking.oracle import Oracle
from lidar_cli.ranking.order import Group, Row
from lidar_cli.ranking.session import Ranking
from lidar_cli.report import oracle as against
from lidar_cli.report.remarks import remarks
from lidar_cli.report.scores import record
from lidar_cli.report.text import (
    cell,
    console,
    lines,
    metric_text,
    one_line,
    path_cell,
    print_columns,
    shown,
    tied_ranks,
    with_reach,
)

STYLES = {"same": "dim", "warning": "yellow"}  # by kind of remark
DECIDING = {  # what groups differ in -> the option that makes them alike
    "views": "--views",
    "pixel statistics": "--pixel-stats",
    "image size": "--image-size",
    "mask grid": "--views",
    "layer": "--layer",
    "d": "--layer",
    "n": "-n",
    "q": "-q",
    "samples": "--data",
    "seed": "--seed",
    "precision": "--precision",
    "storage": "--storage",
    "embedding revision": "lidar extract --overwrite on the older feature files",
}
# Named in a heading only where groups differ in them.
SELDOM = ("pixel statistics", "seed", "normalised", "precision", "storage", "embedding revision")


def check_single_group(ranking: Ranking) -> None:
    """Raise SettingsError if a single best checkpoint cannot be named."""
    if len(ranking.groups) > 1:
        apart = differing(ranking.groups)
        options = ", ".join(dict.fromkeys(DECIDING[name] for name in apart if name in DECIDING))
        raise SettingsError(
            f"{len(ranking.groups)} groups of checkpoints are not comparable, they differ in "
            f"{', '.join(apart)}; make them alike with {options}, or rank them apart"
        )


def top(ranking: Ranking, count: int | None) -> Ranking:
    """The first `count` rows of each group, or all."""
    if count is None:
        return ranking
    groups = tuple(replace(group, rows=group.rows[:count]) for group in ranking.groups)
    return replace(ranking, groups=groups)


def to_json(ranking: Ranking, oracle: Oracle | None = None) -> str:
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
                "metrics": metrics_of(row),
            }
            for at, group in enumerate(ranking.groups)
            for row in group.rows
        ],
        "skipped": [{"path": left.path, "reason": left.reason} for left in ranking.skipped],
        "failed": [{"path": left.path, "reason": left.reason} for left in ranking.failed],
        "warnings": list(ranking.warnings),
        "correlation": against.to_record(oracle) if oracle else None,
    }
    return json.dumps(document, indent=2, allow_nan=False)


def to_csv(ranking: Ranking, oracle: Oracle | None = None) -> str:
    """A header and a line a checkpoint; its accuracy last, where an oracle tells it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = ["n_samples", "n_views", "dim", "layer", "delta", *METRICS]
    last = ["accuracy"] if oracle else []
    sure = ["value", "ci_low", "ci_high", "tied_with"]
    writer.writerow(["group", "rank", "path", "by", *sure, *names, *last])
    for at, group in enumerate(ranking.groups):
        for row in group.rows:
            values = [getattr(row.score, name) for name in names]
            told = [row.value, row.interval.ci_low, row.interval.ci_high, "; ".join(row.tied_with)]
            cells = [at + 1, row.rank, path_cell(row.path), ranking.by.name, *told, *values]
            cells += [oracle.accuracies.get(row.path)] if oracle else []
            writer.writerow(map(cell, cells))
    return out.getvalue()


def to_markdown(ranking: Ranking, oracle: Oracle | None = None) -> str:
    """A table a group, then those of the oracle."""
    blocks = []
    for group in ranking.groups:
        headers = ["rank", "checkpoint", *METRICS]
        lines = [
            "| " + " | ".join(headers) + " |",
            "|" + "|".join([" ---: ", " :--- ", *[" ---: " for _ in METRICS]]) + "|",
        ]
        for row in group.rows:
            path = printable(row.path).replace("|", "\\|")
            tied = tied_ranks(row, group.rows)
            place = f"{row.rank}, tied with {tied}" if tied else str(row.rank)
            cells = [place, path, *(_cell(row, name, ranking) for name in METRICS)]
            lines.append("| " + " | ".join(cells) + " |")
        blocks.append("\n".join([printable(heading(group, ranking)), "", *lines]))
    blocks += [against.to_markdown(oracle, ranking.directory)] if oracle else []
    blocks += [printable(f"Failed: {left.path}: {left.reason}") for left in ranking.failed]
    return "\n\n".join(blocks)


def to_paths(ranking: Ranking, for_people: bool) -> bytes:
    """Paths alone, best first, one a line: as they are, or as a terminal may show them."""
    return lines([row.path for group in ranking.groups for row in group.rows], for_people)


def print_tables(ranking: Ranking, oracle: Oracle | None = None) -> None:
    """An ordered table for each comparable group, what failed or was skipped, then the oracle's."""
    out = console()
    names = [ranking.by.name, *(name for name in METRICS if name != ranking.by.name)]
    for at, group in enumerate(ranking.groups):
        if at:
            out.print()
        out.print(one_line(heading(group, ranking)))
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
        out.print(one_line(f"failed: {where}: {left.reason}", style="red"))
    for left in ranking.skipped:
        where = shown(left.path, ranking.directory)
        out.print(one_line(f"skipped: {where}: {left.reason}", style="dim"))
    for warning in ranking.warnings:
        out.print(one_line(f"warning: {warning}", style="yellow"))
    if oracle is not None:
        against.print_oracle(out, oracle, ranking.directory)


def print_remarks(out: Console, group: Group, ranking: Ranking) -> None:
    """Aliases, reasons of nulls and warnings of a group, one line each."""
    for remark in remarks(group, ranking):
        out.print(one_line(str(remark), style=STYLES.get(remark.kind, "")))


def heading(group: Group, ranking: Ranking) -> str:
    """What the checkpoints of a group have in common, in one line."""
    count = len(group.rows)
    return "  ".join(
        [
            f"{count} checkpoint{'s' if count > 1 else ''} by {ranking.by.name} "
            f"({ranking.by.direction} is better)",
            *constants(group, ranking),
        ]
    )


def constants(group: Group, ranking: Ranking) -> list[str]:
    """What the values of a group depend on, each told in a few words."""
    common = group.common
    data = ", ".join(dict.fromkeys(str(row.score.data) for row in group.rows))
    recipe = common["views"]["name"] if common["views"] else "?"
    return [
        f"layer {common['layer']}",
        f"n = {common['n']}",
        f"q = {common['q']}",
        f"d = {common['d']}",
        f"views {recipe} {common['image size']} px",
        f"delta = {common['delta']:g}",
        *(f"{name} {common[name]}" for name in SELDOM if name in differing(ranking.groups)),
        f"data: {data}",
    ]


def _cell(row: Row, name: str, ranking: Ranking) -> str:
    """A metric's value, and its reach where it is the one that orders."""
    value = row.score.value(name)
    return (
        with_reach(name, value, row.interval)
        if name == ranking.by.name
        else metric_text(name, value)
    )


def metrics_of(row: Row) -> dict[str, Any]:
    """All readings of a checkpoint and what they depend on, as JSON-ready values."""
    told = record(row.score)
    return {key: value for key, value in told.items() if key not in ("file", "data", "convergence")}


def differing(groups: Sequence[Group]) -> list[str]:
    """Names of what groups have not in common."""
    keys = groups[0].common
    return [key for key in keys if len({repr(group.common[key]) for group in groups}) > 1]
