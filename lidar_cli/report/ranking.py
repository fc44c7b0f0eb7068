"""A ranking as tables with remarks, JSON, CSV, Markdown or paths alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from lidar_cli.core.metrics import METRICS
from lidar_cli.errors import SettingsError, printable
from lidar_cli.ranking.discover import Skipped
from lidar_cli.ranking.oracle import Oracle
from lidar_cli.ranking.order import Group, Row, noise_warnings
from lidar_cli.ranking.session import Ranking
from lidar_cli.report import baseline as baseline_report
from lidar_cli.report import oracle as oracle_report
from lidar_cli.report import runs as runs_report
from lidar_cli.report.scores import BIAS, record
from lidar_cli.report.text import (
    SafeConsole,
    by_remark,
    console,
    csv_path,
    csv_table,
    first_and_more,
    format_percent,
    format_ties,
    format_with_interval,
    markdown_table,
    path_lines,
    print_columns,
    relative,
)
from lidar_cli.scoring.compute import CORRECTED
from lidar_cli.scoring.intervals import Interval

STYLES = {"same": "dim", "warning": "yellow"}  # by kind of remark
OPTION_OF_CONSTANT = {  # a constant in which groups differ -> the option that makes them equal
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
# Printed in a heading only where groups differ in them.
SHOWN_IF_DIFFERENT = (
    "pixel statistics",
    "seed",
    "normalised",
    "precision",
    "storage",
    "embedding revision",
)


def check_single_group(ranking: Ranking) -> None:
    """Raise SettingsError if no single checkpoint is the best, because groups differ."""
    if len(ranking.groups) > 1:
        names = differing(ranking.groups)
        options = ", ".join(
            dict.fromkeys(OPTION_OF_CONSTANT[name] for name in names if name in OPTION_OF_CONSTANT)
        )
        raise SettingsError(
            f"{len(ranking.groups)} groups of checkpoints are not comparable, they differ in "
            f"{', '.join(names)}; make them equal with {options}, or rank them separately",
            code="several-groups",
        )


def top(ranking: Ranking, count: int | None) -> Ranking:
    """The ranking with the first `count` rows of each group; all if None."""
    groups = tuple(replace(group, rows=group.rows[:count]) for group in ranking.groups)
    return replace(ranking, groups=groups)


# For programs


def to_json(ranking: Ranking, oracle: Oracle | None = None) -> str:
    """A JSON object: the order of each group, what was left out, and the correlations."""
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
                **value_record(row),
                "tied_with": list(row.tied_with),
                "metrics": metrics_record(row),
            }
            for at, group in enumerate(ranking.groups)
            for row in group.rows
        ],
        "skipped": [dataclasses.asdict(file) for file in ranking.skipped],
        "failed": [dataclasses.asdict(file) for file in ranking.failed],
        "warnings": list(ranking.warnings),
        "correlation": oracle_report.to_record(oracle) if oracle else None,
        **({"runs": runs_report.to_records(ranking)} if ranking.runs else {}),
        **({"baseline": baseline_report.to_records(ranking)} if ranking.baseline else {}),
    }
    return json.dumps(document, indent=2, allow_nan=False)


def value_record(row: Row) -> dict[str, Any]:
    """The value that orders, its interval, or the reason why it is missing."""
    interval = {"ci_low": row.interval.ci_low, "ci_high": row.interval.ci_high}
    return {"value": row.value, "reason": row.reason, **interval}


def metrics_record(row: Row) -> dict[str, Any]:
    """All metrics of a checkpoint and what they depend on, as JSON-ready values."""
    fields = record(row.score)
    return {
        key: value for key, value in fields.items() if key not in ("file", "data", "convergence")
    }


def to_csv(ranking: Ranking, oracle: Oracle | None = None) -> str:
    """A header and a line per checkpoint; with an oracle, its accuracy in the last column."""
    names = ["n_samples", "n_views", "dim", "layer", "delta", *METRICS]
    headers = ["group", "rank", "path", "by", "value", "ci_low", "ci_high", "tied_with", *names]
    rows = [
        [
            *(at + 1, row.rank, csv_path(row.path), ranking.by.name),
            *(row.value, row.interval.ci_low, row.interval.ci_high, "; ".join(row.tied_with)),
            *(getattr(row.score, name) for name in names),
            *([oracle.accuracies.get(row.path)] if oracle else []),
        ]
        for at, group in enumerate(ranking.groups)
        for row in group.rows
    ]
    return csv_table([*headers, *(["accuracy"] if oracle else [])], rows)


def to_markdown(ranking: Ranking, oracle: Oracle | None = None) -> str:
    """A table per group, the tables of the oracle, and the failed files, in Markdown."""
    blocks = []
    for group in ranking.groups:
        rows = []
        for row in group.rows:
            ties = format_ties(row, group.rows)
            rank = f"{row.rank}, tied with {ties}" if ties else str(row.rank)
            rows.append([rank, row.path, *(metric_cell(row, name, ranking) for name in METRICS)])
        table = markdown_table(["rank", "checkpoint", *METRICS], rows, left=[1])
        blocks.append(f"{printable(heading(group, ranking))}\n\n{table}")
    blocks += [oracle_report.to_markdown(oracle, ranking.directory)] if oracle else []
    blocks += [printable(f"Failed: {file.path}: {file.reason}") for file in ranking.failed]
    return "\n\n".join(blocks)


def to_paths(ranking: Ranking) -> bytes:
    """Paths alone, best first, one per line."""
    return path_lines([row.path for group in ranking.groups for row in group.rows])


# For people


def print_tables(ranking: Ranking, oracle: Oracle | None = None, per_run: bool = False) -> None:
    """Print a table per group, the failed and skipped files, and the tables of the oracle.

    per_run: whether the tables are of runs.
    """
    out = console()
    for at, group in enumerate(ranking.groups):
        if at:
            out.print()
        if per_run:
            facts = ", ".join(constants(group, ranking))
            runs_report.print_runs(out, out, out, at, ranking, facts)
        else:
            print_group(out, group, ranking, list(METRICS))
    print_left_out(out, ranking.failed, ranking.skipped, ranking.directory)
    print_warnings(out, ranking)
    if oracle is not None:
        oracle_report.print_oracle(out, oracle, ranking.directory)


def print_group(
    out: SafeConsole,
    group: Group,
    ranking: Ranking,
    metrics: Sequence[str],
    suffix: str = "",
    accuracies: Mapping[str, float] | None = None,
) -> None:
    """Print a heading, a line per checkpoint, and remarks.

    metrics: columns after the metric that orders. suffix: end of the names that is left out.
    accuracies: between 0 and 1, by path.
    """
    by = ranking.by.name
    names = [name for name in metrics if name != by]
    ties = [format_ties(row, group.rows) for row in group.rows]
    any_ties = any(ties)
    out.print_line(heading(group, ranking))
    rows = [
        [
            str(row.rank),
            relative(row.path, ranking.directory).removesuffix(suffix),
            *([format_percent(accuracies[row.path])] if accuracies else []),
            metric_cell(row, by, ranking),
            *([tied] if any_ties else []),
            *(metric_cell(row, name, ranking) for name in names),
        ]
        for row, tied in zip(group.rows, ties, strict=True)
    ]
    headers = [
        *(["probe %"] if accuracies else []),
        by,
        *(["tied_with"] if any_ties else []),
        *names,
    ]
    headers = ["rank", "checkpoint", *headers]
    rows += [
        [baseline_report.cell_of(baseline, column) for column in headers]
        for baseline in baseline_report.baselines_of(group, ranking)
    ]
    print_columns(out, headers, rows, fixed=2)
    for remark in remarks(group, ranking):
        out.print_line(str(remark), style=STYLES.get(remark.kind, ""))


def print_left_out(
    out: SafeConsole, failed: Iterable[Skipped], skipped: Iterable[Skipped], directory: str
) -> None:
    """Print a line per file that has no rank, with the reason."""
    for label, files, style in (("failed", failed, "red"), ("skipped", skipped, "dim")):
        for file in files:
            out.print_line(f"{label}: {relative(file.path, directory)}: {file.reason}", style=style)


def print_warnings(out: SafeConsole, ranking: Ranking) -> None:
    """Print the warnings about the ranking."""
    cautions = [text for one in ranking.groups for text in baseline_report.cautions(one, ranking)]
    for warning in (*ranking.warnings, *cautions):
        out.print_line(f"warning: {warning}", style="yellow")


def heading(group: Group, ranking: Ranking) -> str:
    """What the checkpoints of a group have in common, in one line."""
    by = f"by {ranking.by.name} ({ranking.by.direction} is better)"
    return "  ".join([f"{count_checkpoints(len(group.rows))} {by}", *constants(group, ranking)])


def count_checkpoints(count: int) -> str:
    """`1 checkpoint`, `2 checkpoints`."""
    return f"{count} checkpoint{'' if count == 1 else 's'}"


def constants(group: Group, ranking: Ranking) -> list[str]:
    """What the values of a group depend on, each in a few words."""
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
        *(
            f"{name} {common[name]}"
            for name in SHOWN_IF_DIFFERENT
            if name in differing(ranking.groups)
        ),
        f"data: {data}",
    ]


def metric_cell(row: Row, name: str, ranking: Ranking) -> str:
    """The value of a metric; the one that orders has its interval."""
    interval = row.interval if name == ranking.by.name else Interval()
    return format_with_interval(name, row.score.value(name), interval)


def differing(groups: Sequence[Group]) -> list[str]:
    """Names of the constants in which groups differ."""
    keys = groups[0].common
    return [key for key in keys if len({repr(group.common[key]) for group in groups}) > 1]


# Remarks


class Remark(NamedTuple):
    """One line about the rows of a group."""

    kind: Literal["same", "missing", "interval", "warning"]
    text: str

    def __str__(self) -> str:
        return f"warning: {self.text}" if self.kind == "warning" else self.text


def remarks(group: Group, ranking: Ranking) -> Iterator[Remark]:
    """Aliases, reasons of missing values, what intervals and ties mean, and warnings; each once."""
    for row in group.rows:
        if row.aliases:
            aliases = ", ".join(relative(alias, ranking.directory) for alias in row.aliases)
            path = relative(row.path, ranking.directory)
            yield Remark("same", f"{path}: the same file as {aliases}")
    notes = ((note, (row, name)) for row in group.rows for name, note in row.score.notes.items())
    for note, pairs in by_remark(notes).items():
        rows = list({row.path: row for row, _ in pairs}.values())
        names = dict.fromkeys(name for _, name in pairs)
        yield Remark("missing", f"{_names(rows, ranking)}: no {', '.join(names)}: {note}")
    yield from _interval_remarks(group, ranking)
    warnings = by_remark((kind, row) for row in group.rows for kind in row.score.warnings)
    if any(noise_warnings([group], ranking.by)):
        warnings.pop("noise", None)  # the warnings of the ranking include it
    for kind, rows in warnings.items():
        yield Remark("warning", f"{_names(rows, ranking)}: {rows[0].score.warnings[kind]}")
    for text in baseline_report.remarks(group, ranking):
        yield Remark("same", text)


def _interval_remarks(group: Group, ranking: Ranking) -> Iterator[Remark]:
    """What +- and ties mean, and why values have no interval or a doubtful one."""
    name, level = ranking.by.name, f"{100 * ranking.level:g} %"
    counts = [row.score.confidence.groups for row in group.rows if row.score.confidence]
    sample_groups = next((count for count in counts if count is not None), None)
    over = "samples" if sample_groups is None else f"{sample_groups} groups of samples"
    if any(row.interval.se is not None for row in group.rows):
        bias = f"; the value itself is {BIAS}" if name in CORRECTED else ""
        text = f"+-: the {level} interval of {name} over {over}, at this n and q{bias}"
        yield Remark("interval", text)
    if any(row.tied_with for row in group.rows):
        unit = "sample" if sample_groups is None else "group"
        yield Remark(
            "interval",
            f"tied: the {level} interval of the difference, {unit} by {unit}, holds 0; it covers "
            "the draw of images, not the training seed",
        )
    for note, rows in by_remark((row.interval.note, row) for row in group.rows).items():
        yield Remark("interval", f"{_names(rows, ranking)}: {name}: {note}")
    reasons = ((row.interval.reason, row) for row in group.rows if row.value is not None)
    for reason, rows in by_remark(reasons).items():
        text = f"{_names(rows, ranking)}: no interval of {name}, and no ties: {reason}"
        yield Remark("interval", text)


def _names(rows: Sequence[Row], ranking: Ranking) -> str:
    return first_and_more([relative(row.path, ranking.directory) for row in rows])
