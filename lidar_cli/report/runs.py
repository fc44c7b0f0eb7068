"""Training runs: the best checkpoint of each and its curve, as tables, JSON, CSV or paths."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from lidar_cli.core.metrics import Metric
from lidar_cli.ranking.order import Group, Row
from lidar_cli.ranking.runs import Point, Run
from lidar_cli.ranking.session import Ranking
from lidar_cli.report import baseline as baseline_report
from lidar_cli.report.text import (
    MISSING,
    SafeConsole,
    by_remark,
    counted,
    csv_path,
    csv_table,
    first_and_more,
    format_value,
    format_with_interval,
    markdown_table,
    path_lines,
    print_columns,
)

FEWEST_POINTS = 3  # of a curve on a narrow terminal
NUMBER_NOTE = "number: in the files' names, which do not say whether it counts epochs or steps"


def top(ranking: Ranking, count: int | None) -> Ranking:
    """The ranking with the best `count` runs of each group, and their best checkpoints alone.

    All of it if None.
    """
    if count is None:
        return ranking
    runs = [run for at, _ in enumerate(ranking.groups) for run in _of_group(ranking, at)[:count]]
    best = {run.best.path for run in runs if run.best}
    groups = tuple(
        replace(
            group,
            rows=tuple(row for row in group.rows if not best.isdisjoint((row.path, *row.aliases))),
        )
        for group in ranking.groups
    )
    return replace(ranking, groups=groups, runs=tuple(runs))


def _rows_by_path(group: Group) -> dict[str, Row]:
    """The rows by path, and by the paths of copies, which may be of other runs."""
    return {path: row for row in group.rows for path in (row.path, *row.aliases)}


def _of_group(ranking: Ranking, at: int) -> list[Run]:
    return [run for run in ranking.runs if run.group == at]


# For programs


def to_records(ranking: Ranking) -> list[dict[str, Any]]:
    """JSON-ready values of every run."""
    return [
        {
            "name": run.name,
            "path": run.path,
            "group": run.group + 1,
            "axis": run.axis,
            "best": _record(run.best),
            "last": _record(run.last),
            "drop": run.drop,
            "tied": run.tied,
            "points": [_record(point) for point in run.points],
        }
        for run in ranking.runs
    ]


def _record(point: Point | None) -> dict[str, Any] | None:
    return dataclasses.asdict(point) if point else None


def to_paths(ranking: Ranking) -> bytes:
    """The path of the best checkpoint of each run, best first, one per line."""
    return path_lines([run.best.path for run in ranking.runs if run.best])


def to_csv(ranking: Ranking) -> str:
    """A header and a line per checkpoint of each run."""
    headers = ["group", "run", "axis", "at", "path", "by", "value", "ci_low", "ci_high", "best"]
    rows = [
        [
            *(run.group + 1, run.name, run.axis, point.x, csv_path(point.path), ranking.by.name),
            *(point.value, point.ci_low, point.ci_high, int(point == run.best)),
        ]
        for run in ranking.runs
        for point in run.points
    ]
    return csv_table(
        [*headers, "last"], [[*row, int(row[4] in _last_paths(ranking))] for row in rows]
    )


def _last_paths(ranking: Ranking) -> set[str]:
    return {csv_path(run.last.path) for run in ranking.runs if run.last}


def to_markdown(ranking: Ranking) -> str:
    """A table per group."""
    blocks = []
    for at, group in enumerate(ranking.groups):
        headers, rows = table(_of_group(ranking, at), group, ranking)
        blocks.append(markdown_table(headers, rows, left=[0]))
    return "\n\n".join(blocks)


# For people


def print_runs(out: SafeConsole, err: SafeConsole, at: int, ranking: Ranking, facts: str) -> None:
    """Print a sentence, a line per run of a group and the curves, and remarks to `err`.

    at: index of the group. facts: what the values of the group depend on.
    """
    group, runs = ranking.groups[at], _of_group(ranking, at)
    if runs and runs[0].best:
        out.print_line(sentence(runs, group, ranking.by), style="bold")
    out.print_line(f"{counted(len(runs), 'run')}, {facts}")
    if out.is_terminal:
        out.print()
    headers, rows = table(runs, group, ranking)
    print_columns(out, headers, rows, fixed=1)
    _print_curves(out, runs)
    lines = list(remarks(runs, group, ranking))
    if lines and err.is_terminal:
        err.print()
    for line in lines:
        err.print_line(line, style="dim")


def table(runs: Sequence[Run], group: Group, ranking: Ranking) -> tuple[list[str], list[list[str]]]:
    """Headers and a line per run, then one per untrained network."""
    by, rows_by_path = ranking.by, _rows_by_path(group)
    rows = [
        [
            run.name,
            at_text(run, run.best),
            _value(run.best, rows_by_path, by),
            at_text(run, run.last) if len(run.points) > 1 else "",
            drop_text(run),
        ]
        for run in runs
    ]
    rows += [
        [one.name, "", baseline_report.cell(one, by.name), "", ""]
        for one in baseline_report.baselines_of(group, ranking)
    ]
    return ["run", "best at", by.name, "last", "drop"], rows


def _value(point: Point | None, rows: dict[str, Row], by: Metric) -> str:
    if point is None:
        return MISSING
    row = rows.get(point.path)
    return (
        format_value(point.value)
        if row is None
        else format_with_interval(by.name, point.value, row.interval)
    )


def at_text(run: Run, point: Point | None) -> str:
    """Such as `epoch 60`; empty where nothing says it."""
    return "" if point is None or point.x is None else f"{run.axis} {point.x:,}"


def drop_text(run: Run) -> str:
    """By how much the last checkpoint is worse than the best of its run: `-3 %`, or `tie`."""
    if run.best is None or len(run.points) == 1 or run.ends_at_best:
        return ""
    if run.last is None:
        return "order not known"
    if run.tied:
        return "tie"
    if run.drop is not None:
        return f"{_percent(run.drop)} %"
    if run.last.value is None or run.best.value is None:
        return MISSING
    return f"{run.last.value - run.best.value:+.2g}"


def _percent(share: float) -> str:
    percent = 100 * share
    return f"{percent:+.0f}" if abs(percent) >= 1 else f"{percent:+.1g}"


def sentence(runs: Sequence[Run], group: Group, by: Metric) -> str:
    """The best run and where it is best, how much worse it is at its end, and the next run."""
    first, rows = runs[0], _rows_by_path(group)
    assert first.best is not None
    at = at_text(first, first.best)
    best = rows[first.best.path]
    alike = {best.path, *best.tied_with}  # runs may share their best checkpoint
    tied = [run.name for run in runs[1:] if run.best and rows[run.best.path].path in alike]
    text = f"{first.name} is {'first' if tied else 'best'} by {by.name}{f', at {at}' if at else ''}"
    text += f": {format_with_interval(by.name, best.value, best.interval)}"
    text += f", but tied with {first_and_more(tied)}." if tied else "."
    if len(first.points) > 1:
        text += f" {_end_text(first)}"
    if len(runs) > 1 and runs[1].best and not tied:
        next_best = rows[runs[1].best.path]
        measured = best.interval.se is not None and next_best.interval.se is not None
        side = "below" if by.direction == "higher" else "behind"
        value = f": {format_value(next_best.value)}; how much of that is chance is unknown"
        text += f" Next is {runs[1].name}{f', clearly {side}' if measured else value}."
    return text


def _end_text(run: Run) -> str:
    """How the last checkpoint of a run compares with its best, in a sentence."""
    if run.last is None:
        return f"Nothing says which of its {len(run.points)} checkpoints is the last."
    if run.ends_at_best:
        return "That is its last checkpoint."
    at = at_text(run, run.last)
    last = f"Its last checkpoint{f', {at},' if at else ''}"
    if run.tied:
        return f"{last} is tied with it."
    if run.drop is not None:
        side = "below" if run.drop < 0 else "above"
        return f"{last} is {_percent(abs(run.drop)).lstrip('+')} % {side} it."
    return f"{last} has {format_value(run.last.value)}."


def _print_curves(out: SafeConsole, runs: Sequence[Run]) -> None:
    """Print the values of each run in the order of training, on a terminal as many as fit."""
    curves = [run for run in runs if sum(point.x is not None for point in run.points) > 1]
    if not curves:
        return
    out.print()
    out.print_line("curves, by epoch, step or number; the best is marked *")
    width = max(len(run.name) for run in curves)
    for run in curves:
        points = _once([point for point in run.points if point.x is not None])
        cells = {point: _curve_cell(run, point) for point in points}
        longest = max(map(len, cells.values())) + 2
        room = (out.width - width - 2) // longest
        if out.is_terminal and len(points) > room:
            points = _thinned(points, run.best, max(FEWEST_POINTS, room))
        out.print_line(
            f"{run.name:{width}}  "
            + "".join(f"{cells[point]:<{longest}}" for point in points).rstrip()
        )


def _curve_cell(run: Run, point: Point) -> str:
    mark = "*" if run.best and point.x == run.best.x else ""
    return f"{point.x:,}: {format_value(point.value)}{mark}"


def _once(points: Sequence[Point]) -> list[Point]:
    """One point for each x: copies of a checkpoint, such as last.ckpt, add nothing to a curve."""
    return list({point.x: point for point in reversed(points)}.values())[::-1]


def _thinned(points: Sequence[Point], best: Point | None, count: int) -> list[Point]:
    """`count` of the points, evenly spaced, among them the first, the last and the best."""
    steps = {round(at * (len(points) - 1) / (count - 1)) for at in range(count)}
    peak = next((at for at, point in enumerate(points) if best and point.x == best.x), None)
    if peak is not None and peak not in steps:
        inner = steps - {0, len(points) - 1} or steps
        steps = (steps - {min(inner, key=lambda at: abs(at - peak))}) | {peak}
    return [points[at] for at in sorted(steps)]


def remarks(runs: Sequence[Run], group: Group, ranking: Ranking) -> Iterator[str]:
    """What drops and ties mean, what is not known of the order, and the untrained networks."""
    level = f"{100 * ranking.level:g} %"
    if any(run.tied for run in runs):
        yield f"tie: the {level} interval of the difference to the best of the run holds 0"
    reasons = ((row.interval.reason, row) for row in group.rows if row.value is not None)
    has_drops = any(len(run.points) > 1 for run in runs)
    for reason, rows in by_remark(reasons).items() if has_drops else ():
        count = counted(len(rows), "checkpoint")
        yield f"{count} without interval, so a drop may be noise: {reason}"
    if any(run.axis == "number" for run in runs):
        yield NUMBER_NOTE
    for run in runs:
        if run.clashes:
            yield (
                f"{run.name}: {first_and_more([ranking.name(path) for path in run.clashes])}: the "
                f"{run.axis} that the file records is used, its name says another"
            )
        without = [ranking.name(point.path) for point in run.points if point.x is None]
        if without and len(run.points) > 1:
            yield f"{run.name}: no epoch or step recorded or in the name: {first_and_more(without)}"
    yield from baseline_report.remarks(group, ranking)
