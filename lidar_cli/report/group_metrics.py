"""Metrics of a group and the second opinion in JSON, and in remarks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lidar_cli.ranking.group_metrics import (
    DSE_OF,
    GROUP_METRICS,
    ORDERS,
    SECOND_OPINION,
    GroupMetric,
    dse_weight,
    leave_one_out,
    table_of,
    why_null,
)
from lidar_cli.ranking.order import Group, why_fixed
from lidar_cli.ranking.session import Ranking
from lidar_cli.report.text import by_remark, counted, first_and_more, joined_by_and
from lidar_cli.report.verdict import best_by, comparison_command, second_choice


def formed_in(group: Group) -> list[GroupMetric]:
    """The metrics of a group that a checkpoint of it has."""
    return [metric for metric in GROUP_METRICS.values() if best_by(metric.name, group.rows)]


def to_records(ranking: Ranking) -> list[dict[str, Any]]:
    """What each metric of a group was computed over, what it selects, how often that changes."""
    return [
        _record(metric, group, at)
        for at, group in enumerate(ranking.groups)
        for metric in formed_in(group)
    ]


def _record(metric: GroupMetric, group: Group, at: int) -> dict[str, Any]:
    scores = [row.score for row in group.rows]
    changed = leave_one_out(metric, scores)
    weight = {"weight": float(dse_weight(table_of(scores, DSE_OF)))}
    return {
        "group": at + 1,
        "metric": metric.name,
        "of": list(metric.of),
        "checkpoints": len(scores),
        "paths": [row.path for row in group.rows],
        "first": [row.path for row in best_by(metric.name, group.rows)],
        "left_out": changed.left_out,
        "first_changes": changed.changes,
        "not_resampled": why_fixed(metric, scores),
        **(weight if metric.of == DSE_OF else {}),
    }


def choice_records(ranking: Ranking) -> list[dict[str, Any]]:
    """What the second opinion selects in each group, and the command where that differs."""
    records = []
    for at, group in enumerate(ranking.groups):
        choice = second_choice(group, ranking)
        if choice is None:
            continue
        ours, theirs = group.rows[0].path, choice.theirs
        record = {"group": at + 1, "metric": choice.metric, "first": list(choice.first)}
        record["differs"] = theirs is not None
        record["command"] = comparison_command(ranking, ours, theirs) if theirs else None
        records.append(record)
    return records


def main_remarks(group: Group, ranking: Ranking) -> Iterator[str]:
    """Which checkpoints lack a part of the metric that orders, or of the second opinion.

    Then how often the first changes by the one that orders; by another, only where it does.
    """
    if len(group.rows) > 1:
        for name in dict.fromkeys((SECOND_OPINION, ranking.by.name)):
            metric = ORDERS[name]
            if isinstance(metric, GroupMetric):
                yield from _incomplete(metric, group, ranking)
    for metric in formed_in(group):
        orders = metric == ranking.by
        if len(group.rows) > 1 and (orders or metric.name == SECOND_OPINION):
            changed = leave_one_out(metric, [row.score for row in group.rows])
            if orders or changed.changes:
                yield _changes_text(metric, *changed)


def _incomplete(metric: GroupMetric, group: Group, ranking: Ranking) -> Iterator[str]:
    """Which checkpoints lack a part of a metric, and so the metric; each reason once."""
    pairs = []
    for row in group.rows:
        missing = [name for name in metric.of if row.score.value(name) is None]
        if row.score.value(metric.name) is None:
            pairs.append((f"no {metric.name}: {why_null(metric, row.score)}", row))
        elif missing:
            used = [name for name in metric.of if name not in missing]
            why = row.score.notes.get(missing[0])
            text = f"{metric.name} is of {joined_by_and(used)} alone: no {', '.join(missing)}"
            pairs.append((f"{text}{f': {why}' if why else ''}", row))
    for text, rows in by_remark(pairs).items():
        names = first_and_more([ranking.name(row.path) for row in rows])
        yield f"{'all' if len(rows) == len(group.rows) else names}: {text}"


def remarks(group: Group, ranking: Ranking) -> Iterator[str]:
    """What each metric of the group is formed from, how often its first changes, and its ties."""
    for metric in formed_in(group):
        scores = [row.score for row in group.rows]
        count = counted(len(scores), "checkpoint")
        yield f"{metric.name}: of {joined_by_and(metric.of)} over the {count} of this table"
        if len(scores) > 1:
            yield _changes_text(metric, *leave_one_out(metric, scores))
        why = why_fixed(metric, scores)
        if metric == ranking.by and why and group.rows[0].interval.se is not None:
            yield f"ties by {metric.name}: {why}, so the order by these is always the same"


def _changes_text(metric: GroupMetric, left_out: int, changes: int) -> str:
    if not changes:
        return f"leaving out any one of the other {left_out} keeps the first by {metric.name}"
    return (
        f"leaving out one of the other {left_out} changes the first by {metric.name} in "
        f"{changes} of {counted(left_out, 'case')}"
    )
