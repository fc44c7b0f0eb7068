"""A ranking compared with accuracies: correlation and selected checkpoint of every metric."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from lidar_cli.errors import printable
from lidar_cli.probing.few_shot import DRAWS
from lidar_cli.ranking.few_labels import FewLabels
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
    print_wrapped,
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
        "few_labels": _few_labels_record(oracle.few_labels),
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
        "few_labels": dataclasses.asdict(comparison.few_labels) if comparison.few_labels else None,
    }


def _few_labels_record(few: FewLabels | None) -> dict[str, Any] | None:
    if few is None:
        return None
    return {
        "per_class": few.per_class,
        "n_draws": DRAWS,
        "draws": {path: list(each) for path, each in few.accuracies.items()},
        "full": dict(few.full) if few.full else None,
        "full_method": few.full_method,
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
        if text := few_labels_text(oracle, comparison, ranking):
            print_wrapped(out, text)
        out.print_line(
            f"{source_text(oracle)}: {selection.count} checkpoints{group}, accuracies in percent; "
            "a positive correlation: the better direction agrees"
        )
        headers, rows = table(oracle, comparison, selection, ranking)
        print_columns(out, headers, rows, fixed=1)
        for reason in missing_intervals(comparison):
            out.print_line(reason)
        if comparison.hyperparameters and not _has_full(comparison):
            out.print_line(sets_text(comparison), style="dim")


def to_markdown(oracle: Oracle, ranking: Ranking) -> str:
    """The tables of `print_oracle` in Markdown."""
    blocks = []
    for comparison in oracle.comparisons:
        if comparison.selection is not None:
            headers, rows = table(oracle, comparison, comparison.selection, ranking)
            title = f"{source_text(oracle)}; accuracies in percent"
            text = few_labels_text(oracle, comparison, ranking)
            blocks += [printable(text)] if text else []
            blocks.append(f"{title}\n\n{markdown_table(headers, rows, left=[0])}")
    return "\n\n".join(blocks)


def source_text(oracle: Oracle) -> str:
    """The source of the accuracies, and how they were read or measured."""
    return f"Against {oracle.source} ({oracle.method})"


def table(
    oracle: Oracle, comparison: GroupComparison, selection: Selection, ranking: Ranking
) -> tuple[list[str], list[list[str]]]:
    """Headers, and a line per metric; then the best and the median checkpoint.

    If a full probe judges a few labels, the correlations are with both.
    """
    if oracle.few_labels is not None and _has_full(comparison):
        return _few_labels_table(oracle, comparison, oracle.few_labels)
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


def _has_full(comparison: GroupComparison) -> bool:
    return comparison.few_labels is not None and bool(comparison.few_labels.metrics)


def _few_labels_table(
    oracle: Oracle, comparison: GroupComparison, few: FewLabels
) -> tuple[list[str], list[list[str]]]:
    """The correlations of each metric, and of few labels, with few labels and the full probe."""
    here = comparison.few_labels
    assert here is not None
    level, name = f"{100 * oracle.level:g} %", f"{few.per_class} a class"
    headers = ["metric", name, level, "full probe", level, "selected", "labels win"]
    of_draw = [format_signed(here.spearman), _ends(here.interval), format_percent(here.accuracy)]
    rows = [[f"({name})", "", "", *of_draw, ""]]
    for by_few, by_full in zip(comparison.correlations, here.metrics, strict=True):
        rows.append(
            [
                by_few.metric,
                format_signed(by_few.spearman),
                _ends(by_few.spearman_interval),
                format_signed(by_full.spearman),
                _ends(by_full.interval),
                format_percent(by_full.accuracy),
                MISSING if by_full.labels_win is None else str(by_full.labels_win),
            ]
        )
    full = [few.full[path] for path in here.spans if path in few.full]
    for label, value in (("(best)", max(full)), ("(median)", statistics.median(full))):
        rows.append([label, *[""] * 4, format_percent(value), ""])
    return headers, rows


def few_labels_text(oracle: Oracle, comparison: GroupComparison, ranking: Ranking) -> str:
    """What a few labels say, in sentences: against the metrics, and which checkpoints are best.

    Empty if a few labels were not asked for.
    """
    few, here = oracle.few_labels, comparison.few_labels
    if few is None or here is None:
        return ""
    labels = f"{counted(few.per_class, 'label')} a class"
    texts = []
    if here.win_all is not None:
        agree = "agrees" if few.per_class == 1 else "agree"
        wins_over = {one.metric: one.labels_win for one in here.metrics}
        by = ranking.by.name
        than = "" if wins_over.get(by) is None else f", better than {by} in {wins_over[by]}"
        wins = f"{here.win_all} of {DRAWS} draws{than}"
        texts.append(f"{labels} {agree} with the full probe better than every metric in {wins}.")
    first = f"By {labels} {ranking.name(here.best)} is best"
    others = [ranking.name(path) for path in here.tied_with_best]
    same = f", but in some draws {first_and_more(others)} {_is(others)} as good" if others else ""
    wide = max(high - low for low, high in here.spans.values())
    texts += [
        f"{first}{same}.",
        f"The accuracy of one checkpoint differs by up to {100 * wide:.1f} points between draws.",
        f"{'Full probe: ' if few.full else ''}{few.full_method}.",
    ]
    return " ".join(text[0].upper() + text[1:] for text in texts)


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


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
