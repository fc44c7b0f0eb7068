"""The demo's ranking with probe accuracies, and how well each metric agrees with them."""

from __future__ import annotations

import shlex
from dataclasses import replace

from rich.table import Table

from lidar_cli.demo.run import N_SAMPLES, Demo
from lidar_cli.report.ranking import print_tables
from lidar_cli.report.text import console, format_signed


def print_demo(demo: Demo) -> None:
    """Print the ranking, the correlations, the time per stage, and the images' licence."""
    out = console()
    words = ("rank", demo.ranking.directory, "-n", str(N_SAMPLES))
    print_tables(replace(demo.ranking, command=words), accuracies=demo.accuracies)
    span = 100 * (max(demo.accuracies.values()) - min(demo.accuracies.values()))
    out.print()
    out.print_line(
        f"Rank correlation with the linear probe ({len(demo.accuracies)} checkpoints, "
        f"{demo.n_train} training and {demo.n_test} test images, accuracies span "
        f"{span:.1f} points); positive: the metric's better direction agrees"
    )
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("metric")
    for name in ("Spearman", "Kendall", "checkpoints"):
        table.add_column(name, justify="right")
    for correlation in demo.correlations:
        table.add_row(
            correlation.metric,
            format_signed(correlation.spearman),
            format_signed(correlation.kendall),
            str(correlation.count),
        )
    out.print(table)
    out.print()
    seconds = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in demo.seconds.items())
    out.print_line(f"{seconds}; the same ranking again: {shlex.join(['lidar', *words])}")
    out.print_line(demo.attribution, style="dim")
