"""Scores to a table, JSON or CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from rich.table import Table

from lidar_cli.core.metrics import METRICS
from lidar_cli.report.converge import print_convergence
from lidar_cli.report.text import (
    between,
    cell,
    console,
    metric_text,
    one_line,
    path_cell,
    print_columns,
    text_of,
    with_reach,
)
from lidar_cli.scoring.compute import CORRECTED, Score, plain_fields
from lidar_cli.scoring.intervals import Interval

UPWARD = "biased upward, the more the fewer views"
ENDS = ("se", "ci_low", "ci_high")  # of an interval

DETAILS = {  # what stands beside a value where only one file is shown
    "n_above_noise": lambda score: (
        f"edge {text_of(score.noise_edge)}"
        + (", of contrasts" if score.noise_edge_law == "contrasts" else "")
    ),
    **dict.fromkeys(CORRECTED, lambda score: UPWARD),
    "rankme": lambda score: f"{score.rankme_rows} rows, {score.rankme_source}",
    "alpha_req": lambda score: (
        f"R2 {text_of(score.alpha_req_r2)}, ranks {score.alpha_req_ranks[0]}-"
        f"{score.alpha_req_ranks[1]}"
    ),
}


def record(score: Score) -> dict[str, Any]:
    """A score as JSON-ready values, without its spectra, influences and provenance."""
    parts = {"confidence": score.confidence, "convergence": score.convergence}
    nested = {name: dataclasses.asdict(part) if part else None for name, part in parts.items()}
    return score.record() | nested


def to_json(scores: Sequence[Score]) -> str:
    """One array, an object a file and layer."""
    return json.dumps([record(score) for score in scores], indent=2, allow_nan=False)


def to_csv(scores: Sequence[Score]) -> str:
    """A header and a line a file and layer; empty where there is no value."""
    names = [name for name in plain_fields() if name != "notes"]
    sure = [score.confidence for score in scores if score.confidence]
    ends = [f"{name}_{end}" for name in METRICS for end in ENDS] if sure else []
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*names, *ends])
    for score in scores:
        fields = record(score) | {
            "file": path_cell(score.file),
            "warnings": "; ".join(score.warnings.values()),
            "alpha_req_ranks": "-".join(map(str, score.alpha_req_ranks)),
        }
        intervals = score.confidence.intervals if score.confidence else {}
        for name, interval in intervals.items():
            fields |= {f"{name}_{end}": getattr(interval, end) for end in ENDS}
        cells = [fields.get(name) for name in [*names, *ends]]
        writer.writerow(map(cell, cells))
    return out.getvalue()


def print_table(scores: Sequence[Score], wanted: Collection[str]) -> None:
    """A metric a line for each score; several files side by side become one row each."""
    out = console()
    names = [name for name in METRICS if name in wanted]
    if len(scores) == 1:
        _print_one(scores[0], names)
    else:
        headers = ["n", "q", "d", "file", *names]
        rows = [
            [
                text_of(score.n_samples),
                text_of(score.n_views),
                text_of(score.dim),
                f"{score.file}:{score.layer}",
                *(with_reach(name, score.value(name), interval_of(score, name)) for name in names),
            ]
            for score in scores
        ]
        print_columns(out, headers, rows, fixed=4)
    for score in scores:
        prefix = f"{score.file}:{score.layer}: " if len(scores) > 1 else ""
        for line in reasons(score):
            out.print(one_line(f"{prefix}{line}"))
        for warning in score.warnings.values():
            out.print(one_line(f"{prefix}warning: {warning}"))
        if score.convergence is not None:
            print_convergence(out, score.convergence, names, prefix)


def _print_one(score: Score, names: Sequence[str]) -> None:
    out = console()
    out.print(one_line(f"{score.file}  layer {score.layer}"))
    out.print(one_line("  ".join(constants(score))))
    headers, rows = lines(score, names)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for header in headers:
        right = header == "value" or " % interval" in header
        table.add_column(
            header,
            justify="right" if right else "left",
            no_wrap=bool(header),
            style="dim" if header in ("better", "") else None,
        )
    for row in rows:
        table.add_row(*row)
    out.print(table)


def lines(score: Score, names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Headers, and a line a metric: value, interval where asked for, direction, detail."""
    sure = score.confidence
    rows = []
    for name in names:
        value = score.value(name)
        detail = DETAILS[name](score) if name in DETAILS and value is not None else ""
        interval = [between(interval_of(score, name))] if sure else []
        rows.append([name, metric_text(name, value), *interval, METRICS[name].direction, detail])
    over = f" over {sure.groups} groups" if sure and sure.groups is not None else ""
    level = [f"{100 * sure.level:g} % interval{over}"] if sure else []
    return ["metric", "value", *level, "better", ""], rows


def constants(score: Score) -> list[str]:
    """What the values depend on, each told in a few words."""
    return [
        f"n = {score.n_samples}",
        f"q = {score.n_views}",
        f"d = {score.dim}",
        f"delta = {score.delta:g}",
        f"epsilon = {score.epsilon:g}",
        *(["unit length"] if score.normalized else []),
        *([f"data: {score.data}"] if score.data else []),
    ]


def reasons(score: Score) -> Iterator[str]:
    """Which metrics have no value, which no interval and which a doubtful one, each said once."""
    for reason in dict.fromkeys(score.notes.values()):
        without = [name for name, told in score.notes.items() if told == reason]
        yield f"no {', '.join(without)}: {reason}"
    for reason, without in _unsure(score).items():
        yield f"no interval of {', '.join(without)}: {reason}"
    noted: dict[str, list[str]] = {}
    for name, interval in score.confidence.intervals.items() if score.confidence else ():
        if interval.note is not None:
            noted.setdefault(interval.note, []).append(name)
    for note, names in noted.items():
        yield f"{', '.join(names)}: {note}"


def interval_of(score: Score, metric: str) -> Interval:
    """The interval of a metric, an empty one where none was asked for."""
    return score.confidence.intervals[metric] if score.confidence else Interval()


def _unsure(score: Score) -> dict[str, list[str]]:
    """Reason -> metrics that have a value and no interval, where intervals were asked for."""
    found: dict[str, list[str]] = {}
    for name, interval in score.confidence.intervals.items() if score.confidence else ():
        if interval.reason is not None and score.value(name) is not None:
            found.setdefault(interval.reason, []).append(name)
    return found
