"""The demo's ranking beside the oracle, and how well each metric agrees with it."""

from __future__ import annotations

from rich.table import Table

from lidar_cli.demo.run import N_SAMPLES, Demo
from lidar_cli.report.ranking import heading, print_remarks
from lidar_cli.report.text import (
    console,
    one_line,
    print_columns,
    shown,
    text_of,
    tied_ranks,
    with_reach,
)

SHOWN = (
    "lidar_corrected",
    "pillai",
    "information",
    "reliable_rank",
    "rankme",
    "alpha_req",
)


def print_demo(demo: Demo) -> None:
    """The ranking, the correlations, and what it took."""
    out = console()
    for group in demo.ranking.groups:
        out.print(one_line(heading(group, demo.ranking)))
        tied = [tied_ranks(row, group.rows) for row in group.rows]
        rows = [
            [
                str(row.rank),
                shown(row.path, demo.ranking.directory).removesuffix("/checkpoint.pt"),
                f"{100 * demo.accuracies[row.path]:.1f}",
                with_reach(demo.ranking.by.name, row.value, row.interval),
                *([ranks] if any(tied) else []),
                *(text_of(row.score.value(name)) for name in SHOWN),
            ]
            for row, ranks in zip(group.rows, tied, strict=True)
        ]
        headers = [demo.ranking.by.name, *(["tied_with"] if any(tied) else []), *SHOWN]
        print_columns(out, ["rank", "checkpoint", "probe %", *headers], rows, fixed=2)
        print_remarks(out, group, demo.ranking)
    for warning in demo.ranking.warnings:
        out.print(one_line(f"warning: {warning}", style="yellow"))
    spread = 100 * (max(demo.accuracies.values()) - min(demo.accuracies.values()))
    out.print()
    out.print(
        one_line(
            f"Rank correlation with the linear probe ({len(demo.accuracies)} checkpoints, "
            f"{demo.n_train} training and {demo.n_test} test images, accuracies span "
            f"{spread:.1f} points); positive: the metric's better direction agrees"
        )
    )
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("metric")
    for name in ("Spearman", "Kendall", "checkpoints"):
        table.add_column(name, justify="right")
    for found in demo.correlations:
        table.add_row(
            found.metric, _signed(found.spearman), _signed(found.kendall), str(found.count)
        )
    out.print(table)
    out.print()
    took = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in demo.seconds.items())
    again = f"lidar rank {demo.ranking.directory} -n {N_SAMPLES}"
    out.print(one_line(f"{took}; the same ranking again: {again}"))
    out.print(one_line(demo.attribution, style="dim"))


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"
