"""Untrained networks in tables, remarks and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lidar_cli.core.metrics import METRICS
from lidar_cli.ranking.baseline import SEEDS, Baseline, worse_than_untrained
from lidar_cli.ranking.group_metrics import GROUP_METRICS
from lidar_cli.ranking.order import Group
from lidar_cli.ranking.session import Ranking
from lidar_cli.report.text import MISSING, format_value


def baselines_of(group: Group, ranking: Ranking) -> list[Baseline]:
    """The baselines of a group, those without a value last."""
    here = [one for one in ranking.baseline if ranking.groups[one.group] is group]
    return sorted(here, key=lambda one: one.mean(ranking.by.name) is None)


def cell(baseline: Baseline, metric: str) -> str:
    """The mean over seeds, as in a table."""
    mean = baseline.mean(metric)
    return MISSING if mean is None else format_value(mean)


def cell_of(baseline: Baseline, column: str) -> str:
    """The cell of a table of checkpoints; empty in columns that are of checkpoints alone."""
    if column == "checkpoint":
        return baseline.name
    return cell(baseline, column) if column in METRICS else ""


def cautions_of(group: Group, ranking: Ranking) -> Iterator[str]:
    """A sentence for each untrained network that is better than the best checkpoint of a group."""
    by, best = ranking.by, group.rows[0].value
    here = baselines_of(group, ranking)
    for one in worse_than_untrained(ranking.groups, here, by):
        yield (
            f"an untrained {one.architecture} has a better {by.name} than the best checkpoint: "
            f"{cell(one, by.name)} against {format_value(best)}; here {by.name} says little about "
            "training"
        )


def remarks(group: Group, ranking: Ranking) -> Iterator[str]:
    """A line per baseline: its value, the spread over seeds and the initialisation."""
    return (value_text(one, ranking.by.name) for one in baselines_of(group, ranking))


def value_text(baseline: Baseline, metric: str) -> str:
    """The mean, its spread over seeds, and what was initialised how; or why there is no value."""
    values = baseline.values(metric)
    if not values:
        notes = (score.notes.get(metric) for score in baseline.scores)
        without = "it has no rank" if metric in GROUP_METRICS else "not scored"
        why = baseline.reason or next((note for note in notes if note), without)
        return f"{baseline.name}: no {metric}: {why}"
    spread = f"{format_value(min(values))} .. {format_value(max(values))} over {len(SEEDS)} seeds"
    return (
        f"an untrained {baseline.architecture} has {metric} {cell(baseline, metric)} ({spread}); "
        f"initialised: {baseline.initialisation}"
    )


def to_records(ranking: Ranking) -> list[dict[str, Any]]:
    """JSON-ready values of every baseline."""
    worse = worse_than_untrained(ranking.groups, ranking.baseline, ranking.by)
    return [_record(one, ranking.by.name, one in worse) for one in ranking.baseline]


def _record(one: Baseline, by: str, is_better: bool) -> dict[str, Any]:
    values = one.values(by)
    metrics: Mapping[str, Any] = {
        name: {"mean": one.mean(name), "values": list(one.values(name))} for name in METRICS
    }
    return {
        "name": one.name,
        "group": one.group + 1,
        "architecture": one.architecture,
        "layer": one.layer,
        "initialisation": one.initialisation,
        "seeds": list(SEEDS),
        "value": one.mean(by),
        "lowest": min(values, default=None),
        "highest": max(values, default=None),
        "better_than_best": is_better,
        "reason": one.reason,
        "metrics": metrics if one.scores else {},
    }
