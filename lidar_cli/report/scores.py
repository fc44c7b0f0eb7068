"""Scores as a table, JSON or CSV, with their convergence in n and q."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from rich.table import Table

from lidar_cli.core.metrics import IS_A_COUNT, METRICS
from lidar_cli.errors import printable
from lidar_cli.report.text import (
    CAUTIONS,
    INDENT,
    SafeConsole,
    by_remark,
    column_widths,
    console,
    counted,
    csv_path,
    csv_table,
    error_console,
    first_and_more,
    format_interval,
    format_metric,
    format_value,
    format_with_interval,
    markdown_table,
    print_columns,
    print_labelled,
    print_wrapped,
    wrapped,
)
from lidar_cli.scoring.compute import BIASED, Convergence, Score, plain_fields
from lidar_cli.scoring.intervals import Interval

BIAS = "biased upward, the more the fewer views"
INTERVAL_COLUMNS = ("se", "ci_low", "ci_high")
DETAILED = ("uneven",)  # warnings that change no conclusion, printed with --verbose
AXES = {"samples": "n, samples", "views": "q, views of each"}  # of a convergence

DETAILS = {  # the last column of the table of one file
    "n_above_noise": lambda score: (
        f"edge {format_value(score.noise_edge)}"
        + (", of contrasts" if score.noise_edge_law == "contrasts" else "")
    ),
    **dict.fromkeys(BIASED, lambda score: BIAS),
    "rankme": lambda score: f"{score.rankme_rows} rows, {score.rankme_source}",
    "alpha_req": lambda score: (
        f"R2 {format_value(score.alpha_req_r2)}, ranks {score.alpha_req_ranks[0]}-"
        f"{score.alpha_req_ranks[1]}"
    ),
}


def record(score: Score) -> dict[str, Any]:
    """A score as JSON-ready values, without its spectra, influences and provenance."""
    parts = {"confidence": score.confidence, "convergence": score.convergence}
    nested = {name: dataclasses.asdict(part) if part else None for name, part in parts.items()}
    return score.record() | nested | {"depth": depth(score)}


def depth(score: Score) -> int | None:
    """The place of the layer among those of its file, 1 the shallowest; None if unknown."""
    layers = score.provenance.get("layers") or []
    return layers.index(score.layer) + 1 if score.layer in layers else None


def to_json(scores: Sequence[Score]) -> str:
    """A JSON array with one object per file and layer."""
    return json.dumps([record(score) for score in scores], indent=2, allow_nan=False)


def to_csv(scores: Sequence[Score]) -> str:
    """A header and a line per file and layer; a missing value is empty."""
    names = [name for name in plain_fields() if name != "notes"]
    if any(score.confidence for score in scores):
        names += [f"{name}_{end}" for name in METRICS for end in INTERVAL_COLUMNS]
    rows = []
    for score in scores:
        fields = record(score) | {
            "file": csv_path(score.file),
            "warnings": "; ".join(score.warnings.values()),
            "alpha_req_ranks": "-".join(map(str, score.alpha_req_ranks)),
            "view_counts": score.view_counts and json.dumps(score.view_counts),
        }
        for name, interval in intervals(score):
            fields |= {f"{name}_{end}": getattr(interval, end) for end in INTERVAL_COLUMNS}
        rows.append([fields.get(name) for name in names])
    return csv_table(names, rows)


def to_markdown(scores: Sequence[Score], wanted: Collection[str]) -> str:
    """A table with a line per score, then why values or intervals are missing."""
    headers, rows = score_table(scores, [name for name in METRICS if name in wanted])
    texts = [printable(text) for text in reasons(scores)]
    return "\n\n".join([markdown_table(headers, rows, left=[3]), *texts])


def print_table(scores: Sequence[Score], wanted: Collection[str], verbose: bool = False) -> None:
    """Print a line per metric for one score, a table for several; remarks go to stderr.

    verbose: whether all cautions are printed, not two.
    """
    out, err = console(), error_console()
    names = [name for name in METRICS if name in wanted]
    if len(scores) == 1:
        _print_one(out, scores[0], names)
    else:
        from lidar_cli.report.verdict import scores_verdict

        answer = scores_verdict(scores) if "lidar" in names else None
        if answer is not None:
            print_wrapped(out, answer, style="bold")
        _print_several(out, scores, names)
    _print_remarks(err, scores, verbose)
    for score in scores:
        if score.convergence is not None:
            prefix = f"{_title(score)}: " if len(scores) > 1 else ""
            out.print()
            print_columns(out, *convergence_table(score.convergence, names), fixed=1)
            out.print_line(f"{prefix}advice: {score.convergence.advice}")


def _title(score: Score) -> str:
    return f"{score.file}:{score.layer}"


def _print_several(out: SafeConsole, scores: Sequence[Score], names: Sequence[str]) -> None:
    """Print a line per score; on a terminal a column per score, if that fits and this does not."""
    headers, rows = score_table(scores, names)
    across = list(zip(headers, *rows, strict=True))
    titles, body = across[3], [list(line) for line in (*across[:3], *across[4:])]
    fits = sum(column_widths(titles, body)) + 2 * len(scores) <= out.width
    if out.is_terminal and fits and sum(column_widths(headers, rows)) > out.width:
        print_columns(out, titles, body, fixed=1)
    else:
        print_columns(out, headers, rows, fixed=4)


def score_table(scores: Sequence[Score], names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Headers, and a line per score."""
    rows = [
        [
            *(format_value(score.n_samples), score.q_text, format_value(score.dim)),
            _title(score),
            *(
                format_with_interval(name, score.value(name), score.interval(name))
                for name in names
            ),
        ]
        for score in scores
    ]
    return ["n", "q", "d", "file", *names], rows


def reasons(scores: Sequence[Score], verbose: bool = False) -> Iterator[str]:
    """Why values or intervals are missing, each once for all files."""
    texts = by_remark(
        (text, _title(score))
        for score in scores
        for text in remarks(score)
        if verbose or IS_A_COUNT not in text
    )
    for text, titles in texts.items():
        yield f"{first_and_more(titles)}: {text}" if len(scores) > 1 else text


def _print_remarks(err: SafeConsole, scores: Sequence[Score], verbose: bool) -> None:
    """Why values or intervals are missing, and two cautions or all; each once for all files."""
    for text in reasons(scores, verbose):
        err.print_line(text)
    shown = cautions(scores, verbose)
    for text in shown if verbose else shown[:CAUTIONS]:
        lines = wrapped(text, err.width - INDENT) if err.is_terminal else [text]
        print_labelled(err, "caution", lines, style="yellow")
    if len(shown) > CAUTIONS and not verbose:
        err.print_line(f"{counted(len(shown) - CAUTIONS, 'more caution')}: --verbose")


def cautions(scores: Sequence[Score], verbose: bool = False) -> list[str]:
    """The warnings of scores, each once for all files. verbose: also those of no consequence."""
    warnings = by_remark(
        (text, _title(score))
        for score in scores
        for kind, text in score.warnings.items()
        if verbose or kind not in DETAILED
    )
    return [
        f"{first_and_more(titles)}: {text}" if len(scores) > 1 else text
        for text, titles in warnings.items()
    ]


def _print_one(out: SafeConsole, score: Score, names: Sequence[str]) -> None:
    out.print_line(f"{score.file}  layer {score.layer}")
    out.print_line("  ".join(constants(score)))
    headers, rows = metric_table(score, names)
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


def metric_table(score: Score, names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Headers, and a line per metric: value, interval if there are any, direction, detail."""
    confidence, header = score.confidence, []
    if confidence and any(one.ci_low is not None for one in confidence.intervals.values()):
        groups = confidence.groups
        over = "" if groups is None else f" over {groups} groups"
        header = [f"{100 * confidence.level:g} % interval{over}"]
    rows = []
    for name in names:
        value = score.value(name)
        detail = DETAILS[name](score) if name in DETAILS and value is not None else ""
        interval = [format_interval(score.interval(name))] if header else []
        rows.append([name, format_metric(name, value), *interval, METRICS[name].direction, detail])
    return ["metric", "value", *header, "better", ""], rows


def constants(score: Score) -> list[str]:
    """What the values depend on, each in a few words."""
    return [
        f"n = {score.n_samples}",
        f"q = {score.q_text}",
        f"d = {score.dim}",
        f"delta = {score.delta:g}",
        f"epsilon = {score.epsilon:g}",
        *(["unit length"] if score.normalized else []),
        *([f"data: {score.data}"] if score.data else []),
    ]


def remarks(score: Score) -> Iterator[str]:
    """Why metrics have no value, no interval or a doubtful interval; each reason once."""
    for reason, names in by_remark((note, name) for name, note in score.notes.items()).items():
        yield f"no {', '.join(names)}: {reason}"
    without = (
        (interval.reason, name)
        for name, interval in intervals(score)
        if score.value(name) is not None
    )
    for reason, names in by_remark(without).items():
        yield f"no interval of {', '.join(names)}: {reason}"
    doubtful = ((interval.note, name) for name, interval in intervals(score))
    for note, names in by_remark(doubtful).items():
        yield f"{', '.join(names)}: {note}"


def intervals(score: Score) -> Iterator[tuple[str, Interval]]:
    """The interval of each metric; nothing if no intervals were requested."""
    yield from score.confidence.intervals.items() if score.confidence else ()


# Convergence


def convergence_table(
    convergence: Convergence, names: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """Headers, and a line per metric: at fewer samples, on the complete file, at fewer views.

    A cell is empty if the metric does not depend on the number that is reduced.
    """
    *fewer, complete = convergence.by_samples
    views = f", q = {complete.n_views}" if complete.n_views else ""
    parts = [
        *((f"n = {part.n_samples}", part) for part in fewer),
        (f"n = {complete.n_samples}{views}", complete),
        *((f"q = {part.n_views}", part) for part in convergence.by_views[:-1]),
    ]
    rows = []
    for name in (name for name in METRICS if name in names):
        values = [part.values for _, part in parts]
        rows.append(
            [name, *(format_metric(name, each[name]) if name in each else "" for each in values)]
        )
    return ["metric", *(header for header, _ in parts)], rows


def convergence_shares(convergence: Convergence, axis: str) -> dict[str, list[tuple[int, float]]]:
    """Metric -> pairs of n or q and the value there, divided by the value on the complete file.

    axis: a key of AXES. A metric that does not depend on it is absent.
    """
    points = convergence.by_samples if axis == "samples" else convergence.by_views
    complete = convergence.by_samples[-1].values
    return {
        name: [
            (point.n_samples if axis == "samples" else point.n_views, value / last)
            for point in points
            if (value := point.values[name]) is not None
        ]
        for name in (points[0].values if points else ())
        if (last := complete[name])
    }
