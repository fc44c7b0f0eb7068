"""`lidar compare`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from lidar_cli.api.checks import check_compare
from lidar_cli.cli.options import Csv, Json, Markdown, form_of, with_settings, write_form
from lidar_cli.cli.toy_data import note_toy_data
from lidar_cli.errors import SettingsError
from lidar_cli.ranking.paths import check_two
from lidar_cli.runtime.device import read_rank_info
from lidar_cli.settings import CompareSettings


@with_settings(CompareSettings)
def compare(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Two checkpoints or feature files.", metavar="A B", show_default=False),
    ],
    json: Json = False,
    csv: Csv = False,
    markdown: Markdown = False,
    *,
    settings: CompareSettings,
) -> None:
    """The difference of two checkpoints in every metric.

    lidar compare runs/a.pt runs/b.pt              what a ranking has stored
    lidar compare a.pt b.pt --data photos/ -n 500  images of your own
    lidar compare a.h5 b.h5 --by rankme            two feature files
    """
    form = form_of(json=json, csv=csv, markdown=markdown)
    check_two(paths)
    if read_rank_info().ranks > 1:
        raise SettingsError("compare is run by one process; start it without torchrun")
    check_compare(paths, settings)
    from lidar_cli.ranking.comparison import compare_files
    from lidar_cli.report import comparison as report
    from lidar_cli.report.progress import Terminal

    with Terminal() as terminal:
        comparison = compare_files(paths, settings, terminal)
    report.check_comparable(comparison)
    comparison = replace(comparison, command=tuple(sys.argv[1:]))
    write_form(
        form,
        {
            "json": lambda: report.to_json(comparison),
            "csv": lambda: report.to_csv(comparison),
            "markdown": lambda: report.to_markdown(comparison),
        },
        lambda: report.print_comparison(comparison),
    )
    if comparison.scores is not None:
        note_toy_data(
            str(comparison.scores[0].data),
            list(comparison.checkpoints),
            result="this difference is of",
        )
