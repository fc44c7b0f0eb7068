"""`lidar score`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lidar_cli.api.checks import check_score, usable_embeddings
from lidar_cli.cli.options import (
    Csv,
    Json,
    Markdown,
    Overwrite,
    Report,
    Verbose,
    check_report,
    form_of,
    option,
    with_settings,
    write_form,
)
from lidar_cli.errors import LidarError, NoProcess, ProcessGroupBroken, SettingsError
from lidar_cli.runtime.device import RankInfo, collection_paused, read_rank_info
from lidar_cli.runtime.streams import write_remark, write_results
from lidar_cli.settings import ScoreSettings

if TYPE_CHECKING:
    from lidar_cli.scoring.compute import Score


@with_settings(ScoreSettings)
def score(
    files: Annotated[
        list[Path], typer.Argument(help="Feature files or arrays.", metavar="FILE...")
    ],
    json: Json = False,
    csv: Csv = False,
    markdown: Markdown = False,
    plot: Annotated[
        Path | None, option("--plot", "Draw the spectra to a .png or .svg file.", value="FILE")
    ] = None,
    verbose: Verbose = False,
    page: Report = None,
    overwrite: Overwrite = False,
    *,
    settings: ScoreSettings,
) -> None:
    """Metrics of stored embeddings: LiDAR, RankMe, alpha-ReQ, and others.

    lidar score ckpt.h5                            what lidar extract wrote
    lidar score ckpt.h5 --confidence 0.95          with intervals
    lidar score rows.npy --views-per-sample 10     rows of your own, 10 views each
    """
    form = form_of(json=json, csv=csv, markdown=markdown)
    check_score(settings, plot)
    check_report(page, overwrite)
    rank_info, status = read_rank_info(), 0
    if rank_info.ranks == 1 and settings.dataset is None:
        files, status = usable_embeddings(files, "score")
    if plot is not None:
        from lidar_cli.report.plot import check_plot

        check_plot(plot)
    settings = rank_info.with_device(settings)
    scores, failure = _score(files, settings, rank_info)
    status = failure or status
    if not rank_info.is_main:
        return  # with status 0, because else torchrun would end the rank that still has to print
    if not scores and not csv:  # whose header needs the reports
        if json:
            write_results("[]")
        raise typer.Exit(status)
    from lidar_cli.core.metrics import parse_metrics
    from lidar_cli.report import scores as report

    names = parse_metrics(settings.metrics)
    try:
        write_form(
            form,
            {
                "json": lambda: report.to_json(scores),
                "csv": lambda: report.to_csv(scores),
                "markdown": lambda: report.to_markdown(scores, names),
            },
            lambda: report.print_table(scores, names, verbose) if scores else None,
        )
    finally:  # plot and page are written even if stdout cannot be
        if plot is not None and scores:
            from lidar_cli.report.plot import plot_spectra

            plot_spectra(scores, plot)
        if page is not None and scores:
            from lidar_cli.ranking.hyperparameters import from_names
            from lidar_cli.report.page.content import scores_page
            from lidar_cli.report.page.document import write_page

            parameters = from_names([score.file for score in scores])
            write_page(scores_page(scores, parameters), page, overwrite)
    if status:
        raise typer.Exit(status)


def _score(
    files: list[Path], settings: ScoreSettings, rank_info: RankInfo
) -> tuple[list[Score], int]:
    """The scores of the files that can be used, and the exit status of the last that cannot."""
    from lidar_cli.report.progress import Terminal
    from lidar_cli.scoring.open import open_groups, open_on_all_ranks, open_process_group

    if settings.converge and rank_info.ranks > 1:
        raise SettingsError("--converge: one process reads the file; leave out torchrun")
    groups = open_groups(settings)
    scores: list[Score] = []
    status = 0
    with Terminal(rank_info.is_main) as terminal, open_process_group(rank_info) as process_group:
        for file in files:
            terminal.checkpoint(file.name)
            try:
                layers = open_on_all_ranks(file, settings, process_group)
                with collection_paused():  # of torch, which is not needed to refuse a file
                    from lidar_cli.scoring.run import score_layers
                if settings.converge:
                    from lidar_cli.scoring.convergence import converge_layers

                    scores += converge_layers(layers, settings, terminal, groups)
                else:
                    scores += score_layers(layers, settings, terminal, process_group, groups)
            except (SettingsError, NoProcess):
                raise
            except ProcessGroupBroken as error:
                status = error.exit_status
                # Every rank reports its reason; the scores so far are still printed.
                write_remark(f"error: {file}: {error}")
                break
            except LidarError as error:
                status = error.exit_status
                terminal.note(f"error: {error}")
    return scores, status
