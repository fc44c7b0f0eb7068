"""Metrics against n and q, as text."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from lidar_cli.core.metrics import METRICS
from lidar_cli.report.text import metric_text, one_line, print_columns
from lidar_cli.scoring.compute import Convergence, Point

AXES = {"samples": "n, samples", "views": "q, views of each"}


def columns(found: Convergence) -> list[tuple[str, Point]]:
    """Parts of the file with their headers: those of n, all of it, those of q."""
    *fewer, whole = found.by_samples
    views = f", q = {whole.n_views}" if whole.n_views else ""
    return [
        *((f"n = {part.n_samples}", part) for part in fewer),
        (f"n = {whole.n_samples}{views}", whole),
        *((f"q = {part.n_views}", part) for part in found.by_views[:-1]),
    ]


def table(found: Convergence, names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Headers, and a line a metric; empty where the part leaves it as it is."""
    parts = columns(found)
    rows = [
        [
            name,
            *(
                metric_text(name, part.values[name]) if name in part.values else ""
                for _, part in parts
            ),
        ]
        for name in METRICS
        if name in names
    ]
    return ["metric", *(header for header, _ in parts)], rows


def print_convergence(out: Console, found: Convergence, names: Sequence[str], prefix: str) -> None:
    """The table, then the advice."""
    out.print()
    headers, rows = table(found, names)
    print_columns(out, headers, rows, fixed=1)
    out.print(one_line(f"{prefix}advice: {found.advice}"))


def shares(found: Convergence, axis: str) -> dict[str, list[tuple[int, float]]]:
    """Metric -> how many of the axis, and its value there over that of the whole file.

    axis: a key of AXES. A metric that the axis does not change is absent.
    """
    points = found.by_samples if axis == "samples" else found.by_views
    whole = found.by_samples[-1].values
    told: dict[str, list[tuple[int, float]]] = {}
    for name in points[0].values if points else ():
        last = whole[name]
        if not last:
            continue
        told[name] = [
            (point.n_samples if axis == "samples" else point.n_views, value / last)
            for point in points
            if (value := point.values[name]) is not None
        ]
    return told
