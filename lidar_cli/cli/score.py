"""`lidar score`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lidar_cli.cli.options import with_options
from lidar_cli.cli.shared import (
    Config,
    Csv,
    Json,
    Overwrite,
    Report,
    ShowConfig,
    check_page,
    one_of,
    resolve,
    write_page,
)
from lidar_cli.errors import LidarError, NoProcess, ProcessGroupBroken, SettingsError
from lidar_cli.runtime.streams import write_remark, write_results
from lidar_cli.settings import ScoreSettings


@with_options(ScoreSettings)
def score(
    files: Annotated[
        list[Path], typer.Argument(help="Feature files or arrays.", metavar="FILE...")
    ],
    json: Json = False,
    csv: Csv = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the spectra to a .png or .svg file.")
    ] = None,
    page: Report = None,
    overwrite: Overwrite = False,
    config: Config = None,
    show_config: ShowConfig = False,
    *,
    options: dict[str, Any],
) -> None:
    """LiDAR, RankMe, alpha-ReQ and the noise-corrected readings of stored embeddings."""
    one_of(json=json, csv=csv)
    resolved = resolve(ScoreSettings, options, config, show_config)
    if plot is not None:
        from lidar_cli.report.plot import check_plot

        check_plot(plot)
    check_page(page, overwrite)
    from lidar_cli.report import scores as report
    from lidar_cli.report.terminal import Terminal
    from lidar_cli.runtime.distributed import read_rank_info
    from lidar_cli.scoring.convergence import converge_file
    from lidar_cli.scoring.run import (
        open_groups,
        open_process_group,
        parse_metrics,
        score_file,
    )

    rank_info = read_rank_info()
    values = rank_info.with_device(resolved.values)
    wanted = parse_metrics(values.metrics)
    if values.converge and rank_info.ranks > 1:
        raise SettingsError("--converge: one process reads the file; leave out torchrun")
    groups = open_groups(values)
    found, failed = [], 0
    with Terminal(rank_info.is_main) as terminal, open_process_group(rank_info) as process_group:
        for file in files:
            try:
                if values.converge:
                    found += converge_file(file, values, terminal, groups)
                else:
                    found += score_file(file, values, terminal, process_group, groups)
            except (SettingsError, NoProcess):
                raise
            except ProcessGroupBroken as error:
                failed = error.exit_status
                # Each of them has its own reason; what was scored before is still told.
                write_remark(f"error: {file}: {error}")
                break
            except LidarError as error:
                failed = error.exit_status
                terminal.note(f"error: {error}")
    if not rank_info.is_main:
        return  # with status 0: the engine would end the one that is still to print
    try:
        if json:
            write_results(report.to_json(found))
        elif csv:
            write_results(report.to_csv(found))
        elif found:
            report.print_table(found, wanted)
    finally:  # what was computed is in the files also where stdout refuses it
        if plot is not None and found:
            from lidar_cli.report.plot import plot_spectra

            plot_spectra(found, plot)
            write_remark(f"wrote {plot}")
        if page is not None and found:
            from lidar_cli.ranking.hyperparameters import from_names
            from lidar_cli.report.page.scores import scores_page

            write_page(scores_page(found, from_names([s.file for s in found])), page, overwrite)
    if failed:
        raise typer.Exit(failed)
