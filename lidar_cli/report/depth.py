"""The depth profiles of a ranking: a line per checkpoint, a column per layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lidar_cli.ranking.depth import DepthProfile
from lidar_cli.ranking.order import Group, Row
from lidar_cli.ranking.session import Ranking
from lidar_cli.report.text import SafeConsole, format_metric, print_columns, print_wrapped


def to_records(ranking: Ranking) -> list[dict[str, Any]]:
    """The metric at each layer, in order of depth, of each checkpoint in order of rank."""
    return [
        {
            "group": at + 1,
            "path": row.path,
            "name": ranking.name(row.path),
            "metric": profile.metric,
            "layers": [
                {"layer": layer, "value": value, "pooling": profile.pooling.get(layer)}
                for layer, value in profile.values.items()
            ],
        }
        for at, group in enumerate(ranking.groups)
        for row in group.rows
        if (profile := ranking.depth.get(row.path)) is not None
    ]


def profiles_of(rows: Sequence[Row], ranking: Ranking) -> list[tuple[str, DepthProfile]]:
    """The profiles of rows that have one, with the names of their checkpoints."""
    depth = ranking.depth
    return [(ranking.name(row.path), depth[row.path]) for row in rows if row.path in depth]


def caption(group: Group, ranking: Ranking) -> str:
    """What the table shows, which layer orders, and how layers inside the backbone are pooled."""
    (_, profile), *_ = profiles_of(group.rows, ranking)
    alike: dict[str, list[str]] = {}
    for layer, pooling in profile.pooling.items():
        if layer in profile.values:
            alike.setdefault(pooling, []).append(layer)
    poolings = [f"{', '.join(layers)}: {pooling}" for pooling, layers in alike.items()]
    ordering = f"{profile.metric} by depth, ordered by {group.common['layer']}, the last named"
    return "; ".join([ordering, *poolings])


def table(rows: Sequence[Row], ranking: Ranking) -> tuple[list[str], list[list[str]]]:
    """Headers, and a line per checkpoint with the metric at each layer, the shallowest first."""
    profiles = profiles_of(rows, ranking)
    layers = list(dict.fromkeys(layer for _, profile in profiles for layer in profile.values))
    return ["checkpoint", *layers], [
        [name, *(format_metric(profile.metric, profile.values.get(layer)) for layer in layers)]
        for name, profile in profiles
    ]


def print_depth(out: SafeConsole, group: Group, rows: Sequence[Row], ranking: Ranking) -> None:
    """Print the table of a group, if several layers were named."""
    if profiles_of(rows, ranking):
        out.print_line("")
        print_wrapped(out, caption(group, ranking))
        print_columns(out, *table(rows, ranking), fixed=1)
