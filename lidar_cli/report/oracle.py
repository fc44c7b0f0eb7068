"""A ranking against its oracle: one table for the agreement and the worth of every metric."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from lidar_cli.ranking.oracle import Oracle, Selection, Verdict
from lidar_cli.report.probe import percent
from lidar_cli.report.text import MISSING, one_line, print_columns, shown


def to_record(oracle: Oracle) -> dict[str, Any]:
    """The contract's `correlation`: JSON-ready, accuracies as shares of 1."""
    return {
        "oracle": oracle.source,
        "told": oracle.method,
        "level": oracle.level,
        "accuracies": dict(oracle.accuracies),
        "groups": [
            {"group": at + 1, **_record(verdict)} for at, verdict in enumerate(oracle.verdicts)
        ],
        "without": list(oracle.without),
        "unmatched": [dataclasses.asdict(line) for line in oracle.unmatched],
    }


def print_oracle(out: Console, oracle: Oracle, directory: str) -> None:
    """A table for each comparable group, then what was left out."""
    for at, verdict in enumerate(oracle.verdicts):
        chosen = verdict.selection
        if chosen is None:
            continue
        group = f" of group {at + 1}" if len(oracle.verdicts) > 1 else ""
        out.print()
        out.print(
            one_line(
                f"Against {oracle.source} ({oracle.method}): {chosen.count} checkpoints{group}, "
                f"accuracies in percent; a positive correlation: the better direction agrees"
            )
        )
        headers, rows = table(oracle, verdict, chosen, directory)
        print_columns(out, headers, rows, fixed=1)
        for reason in without_intervals(verdict):
            out.print(one_line(reason))
        if verdict.hyperparameters:
            out.print(one_line(explained(verdict), style="dim"))
    for path in oracle.without:
        out.print(one_line(f"no accuracy: {shown(path, directory)}", style="yellow"))
    for line in oracle.unmatched:
        out.print(
            one_line(f"not matched: {shown(line.path, directory)}: {line.reason}", style="yellow")
        )


def table(
    oracle: Oracle, verdict: Verdict, chosen: Selection, directory: str
) -> tuple[list[str], list[list[str]]]:
    """Headers, and a line a metric; then the best and the median that can be had."""
    level = f"{100 * oracle.level:g} %"
    varied = [column for column in verdict.hyperparameters if column.sets]
    headers = ["metric", "Spearman", level, "Kendall", level, "n", "its pick", "which"]
    headers += [f"by {column.name}" for column in varied]
    rows = []
    for found, pick in zip(verdict.correlations, chosen.picks, strict=True):
        more = f" and {len(pick.paths) - 1} more" if len(pick.paths) > 1 else ""
        rows.append(
            [
                found.metric,
                _signed(found.spearman),
                _span(found.spearman_interval),
                _signed(found.kendall),
                _span(found.kendall_interval),
                str(found.count),
                percent(pick.accuracy),
                (shown(pick.paths[0], directory) + more) if pick.paths else MISSING,
                *(percent(column.picks[found.metric]) for column in varied),
            ]
        )
    best = shown(chosen.best.paths[0], directory)
    for name, value, columns, which in (
        ("(best)", chosen.best.accuracy, [column.best for column in varied], best),
        ("(median)", chosen.median, [column.median for column in varied], ""),
    ):
        rows.append([name, *[""] * 5, percent(value), which, *map(percent, columns)])
    return headers, rows


def to_markdown(oracle: Oracle, directory: str) -> str:
    """The same tables in Markdown."""
    blocks = []
    for verdict in oracle.verdicts:
        if verdict.selection is None:
            continue
        headers, rows = table(oracle, verdict, verdict.selection, directory)
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
        head = "| " + " | ".join(header.replace("|", "\\|") for header in headers) + " |"
        rule = "| :--- |" + " ---: |" * (len(headers) - 1)
        said = f"Against {oracle.source} ({oracle.method}); accuracies in percent"
        blocks.append("\n".join([said, "", head, rule, *lines]))
    return "\n\n".join(blocks)


def without_intervals(verdict: Verdict) -> Iterator[str]:
    """Which correlations have no interval, with the reason; each said once."""
    reasons: dict[str, list[str]] = {}
    for found in verdict.correlations:
        if found.spearman is not None and found.reason is not None:
            reasons.setdefault(found.reason, []).append(found.metric)
    for reason, names in reasons.items():
        yield f"no interval of the correlation of {', '.join(names)}: {reason}"


def explained(verdict: Verdict) -> str:
    """What the columns of hyperparameters are, in one line."""
    known = [column for column in verdict.hyperparameters if column.sets]
    told = ", ".join(
        f"{column.name} {column.count} in {column.sets} set{'s' if column.sets > 1 else ''}"
        for column in known
    )
    none = [column.name for column in verdict.hyperparameters if not column.sets]
    without = f"; no two checkpoints differ in {', '.join(none)} alone" if none else ""
    return (
        "by a hyperparameter: the mean over sets of checkpoints that differ in it alone"
        + (f" ({told})" if told else "")
        + without
    )


def _record(verdict: Verdict) -> dict[str, Any]:
    chosen = verdict.selection
    if chosen is None:
        return {"count": 0, "best": None, "median": None, "metrics": [], "hyperparameters": []}
    return {
        "count": chosen.count,
        "best": {"paths": list(chosen.best.paths), "accuracy": chosen.best.accuracy},
        "median": chosen.median,
        "metrics": [
            dataclasses.asdict(found)
            | {"picked": list(pick.paths), "picked_accuracy": pick.accuracy}
            for found, pick in zip(verdict.correlations, chosen.picks, strict=True)
        ],
        "hyperparameters": [dataclasses.asdict(column) for column in verdict.hyperparameters],
    }


def _signed(value: float | None) -> str:
    return MISSING if value is None else f"{value:+.2f}"


def _span(interval: tuple[float, float] | None) -> str:
    return MISSING if interval is None else f"{interval[0]:+.2f} {interval[1]:+.2f}"
