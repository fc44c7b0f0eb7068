"""A ranking compared with accuracies: correlation and selected checkpoint of every metric."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from lidar_cli.ranking.oracle import GroupComparison, Oracle, Selection
from lidar_cli.ranking.session import Ranking
from lidar_cli.report.text import (
    MISSING,
    SafeConsole,
    by_remark,
    counted,
    first_and_more,
    format_percent,
    format_signed,
    markdown_table,
    print_columns,
)


def to_record(oracle: Oracle) -> dict[str, Any]:
    """JSON-ready values; accuracies are shares of 1."""
    return {
        "oracle": oracle.source,
        "told": oracle.method,
        "level": oracle.level,
        "accuracies": dict(oracle.accuracies),
        "groups": [
            {"group": at + 1, **_record(comparison)}
            for at, comparison in enumerate(oracle.comparisons)
        ],
        "without": list(oracle.without),
        "unmatched": [dataclasses.asdict(line) for line in oracle.unmatched],
    }


def _record(comparison: GroupComparison) -> dict[str, Any]:
    selection = comparison.selection
    if selection is None:
        return {"count": 0, "best": None, "median": None, "metrics": [], "hyperparameters": []}
    return {
        "count": selection.count,
        "best": {"paths": list(selection.best.paths), "accuracy": selection.best.accuracy},
        "median": selection.median,
        "metrics": [
            dataclasses.asdict(correlation)
            | {"picked": list(pick.paths), "picked_accuracy": pick.accuracy}
            for correlation, pick in zip(comparison.correlations, selection.picks, strict=True)
        ],
        "hyperparameters": [dataclasses.asdict(column) for column in comparison.hyperparameters],
    }


def print_oracle(out: SafeConsole, oracle: Oracle, ranking: Ranking) -> None:
    """Print the lines and checkpoints that are left out, then a table per comparable group."""
    if oracle.unmatched or oracle.without:
        out.print()
    for line in oracle.unmatched:
        text = f"not matched: {ranking.name(line.path)}: {line.reason}"
        out.print_line(text, style="yellow")
    for path in oracle.without:
        out.print_line(f"no accuracy: {ranking.name(path)}", style="yellow")
    for at, comparison in enumerate(oracle.comparisons):
        selection = comparison.selection
        if selection is None:
            continue
        group = f" of group {at + 1}" if len(oracle.comparisons) > 1 else ""
        out.print()
        out.print_line(
            f"{source_text(oracle)}: {selection.count} checkpoints{group}, accuracies in percent; "
            "a positive correlation: the better direction agrees"
        )
        headers, rows = table(oracle, comparison, selection, ranking)
        print_columns(out, headers, rows, fixed=1)
        for reason in missing_intervals(comparison):
            out.print_line(reason)
        if comparison.hyperparameters:
            out.print_line(sets_text(comparison), style="dim")


def to_markdown(oracle: Oracle, ranking: Ranking) -> str:
    """The tables of `print_oracle` in Markdown."""
    blocks = []
    for comparison in oracle.comparisons:
        if comparison.selection is not None:
            headers, rows = table(oracle, comparison, comparison.selection, ranking)
            title = f"{source_text(oracle)}; accuracies in percent"
            blocks.append(f"{title}\n\n{markdown_table(headers, rows, left=[0])}")
    return "\n\n".join(blocks)


def source_text(oracle: Oracle) -> str:
    """The source of the accuracies, and how they were read or measured."""
    return f"Against {oracle.source} ({oracle.method})"


def table(
    oracle: Oracle, comparison: GroupComparison, selection: Selection, ranking: Ranking
) -> tuple[list[str], list[list[str]]]:
    """Headers, and a line per metric; then the best and the median checkpoint."""
    level = f"{100 * oracle.level:g} %"
    varied = [column for column in comparison.hyperparameters if column.sets]
    headers = ["metric", "Spearman", level, "Kendall", level, "n", "selected", "which"]
    headers += [f"by {column.name}" for column in varied]
    rows = []
    for correlation, pick in zip(comparison.correlations, selection.picks, strict=True):
        names = [ranking.name(path) for path in pick.paths]
        rows.append(
            [
                correlation.metric,
                format_signed(correlation.spearman),
                _ends(correlation.spearman_interval),
                format_signed(correlation.kendall),
                _ends(correlation.kendall_interval),
                str(correlation.count),
                format_percent(pick.accuracy),
                first_and_more(names) if names else MISSING,
                *(format_percent(column.picks[correlation.metric]) for column in varied),
            ]
        )
    best = ranking.name(selection.best.paths[0])
    for name, value, columns, which in (
        ("(best)", selection.best.accuracy, [column.best for column in varied], best),
        ("(median)", selection.median, [column.median for column in varied], ""),
    ):
        rows.append([name, *[""] * 5, format_percent(value), which, *map(format_percent, columns)])
    return headers, rows


def _ends(interval: tuple[float, float] | None) -> str:
    return MISSING if interval is None else " ".join(map(format_signed, interval))


def missing_intervals(comparison: GroupComparison) -> Iterator[str]:
    """Which correlations have no interval, and why; each reason once."""
    some = [one for one in comparison.correlations if one.spearman is not None]
    for reason, names in by_remark((one.reason, one.metric) for one in some).items():
        which = first_and_more(names) if len(names) < len(some) else "any metric"
        yield f"no interval of the correlation of {which}: {reason}"


def sets_text(comparison: GroupComparison) -> str:
    """The meaning of the columns of hyperparameters, in one line."""
    sets = ", ".join(
        f"{column.name} {column.count} in {counted(column.sets, 'set')}"
        for column in comparison.hyperparameters
        if column.sets
    )
    none = [column.name for column in comparison.hyperparameters if not column.sets]
    return (
        "by a hyperparameter: the mean over sets of checkpoints that differ in it alone"
        + (f" ({sets})" if sets else "")
        + (f"; no two checkpoints differ in {', '.join(none)} alone" if none else "")
    )
