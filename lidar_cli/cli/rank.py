"""`lidar rank`, its race, and the directory that it follows."""

from __future__ import annotations

import sys
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
from lidar_cli.errors import SettingsError
from lidar_cli.runtime.streams import write_remark, write_results
from lidar_cli.settings import RankSettings


@with_options(RankSettings)
def rank(
    directory: Annotated[Path, typer.Argument(help="Directory of checkpoints.", metavar="DIR")],
    json: Json = False,
    csv: Csv = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Print paths alone, best first, one a line.")
    ] = False,
    page: Report = None,
    overwrite: Overwrite = False,
    config: Config = None,
    show_config: ShowConfig = False,
    *,
    options: dict[str, Any],
) -> None:
    """Order every checkpoint under a directory, extracting what is not yet extracted."""
    one_of(json=json, csv=csv, markdown=markdown, quiet=quiet)
    resolved = resolve(RankSettings, options, config, show_config)
    if resolved.values.collect:
        one_of(collect=True, watch=resolved.values.watch, race=resolved.values.race)
    if resolved.values.watch:
        told = resolved.values
        one_of(watch=True, json=json, csv=csv, markdown=markdown, quiet=quiet)
        one_of(watch=True, race=told.race, report=page, top=told.top)
        one_of(watch=True, oracle=told.oracle, params=told.params)
        _follow(directory, told)
        return
    if resolved.values.race:
        told = resolved.values
        one_of(race=True, report=page, oracle=told.oracle, params=told.params)
        one_of(race=True, csv=csv, markdown=markdown, no_store=not told.store)
        _race(directory, told, json, quiet)
        return
    for name in ("watch_for", "jsonl", "tensorboard"):
        if getattr(resolved.values, name) is not None:
            raise SettingsError(f"--{name.replace('_', '-')} belongs to --watch; add that")
    check_page(page, overwrite)
    from lidar_cli.ranking.oracle import check_tables, hyperparameters_for_page, judge
    from lidar_cli.ranking.session import rank_together
    from lidar_cli.report import ranking as report
    from lidar_cli.report.terminal import Terminal
    from lidar_cli.runtime.distributed import read_rank_info

    check_tables(resolved.values, report=page is not None)
    oracle, parameters = None, {}
    rank_info = read_rank_info()
    with Terminal(rank_info.is_main) as terminal:
        found = rank_together(directory, resolved.values, terminal, rank_info)
        if found is None:
            terminal.note("all checkpoints are scored; another process prints the ranking")
            return
        if resolved.values.oracle is not None:
            oracle = judge(found, resolved.values, terminal)
        if page is not None:
            parameters = hyperparameters_for_page(found, resolved.values, terminal)
        if quiet or resolved.values.top is not None:
            report.check_single_group(found)
        everything, found = found, report.top(found, resolved.values.top)
    try:
        if json:
            write_results(report.to_json(found, oracle))
        elif csv:
            write_results(report.to_csv(found, oracle))
        elif markdown:
            write_results(report.to_markdown(found, oracle))
        elif quiet:
            write_results(report.to_paths(found, for_people=sys.stdout.isatty()))
        else:
            report.print_tables(found, oracle)
    finally:  # what was computed is in the page also where stdout refuses it
        if page is not None:
            from lidar_cli.report.page.ranking import ranking_page

            write_page(ranking_page(everything, oracle, parameters), page, overwrite)
    if found.failed:
        if quiet or json or csv or markdown:
            for row in found.failed:
                write_remark(f"failed: {row.path}: {row.reason}")
        raise typer.Exit(4)


def _race(directory: Path, values: RankSettings, json: bool, quiet: bool) -> None:
    from lidar_cli.ranking.race import race_directory
    from lidar_cli.report import race as report
    from lidar_cli.report.terminal import Terminal
    from lidar_cli.runtime.distributed import read_rank_info

    if read_rank_info().ranks > 1:
        raise SettingsError("--race is run by one process; start it without torchrun")
    with Terminal() as terminal:
        found = race_directory(directory, values, terminal)
        if json or quiet:
            terminal.note(report.verdict(found))
    if json:
        write_results(report.to_json(found, values.top))
    elif quiet:
        write_results(report.to_paths(found, values.top, sys.stdout.isatty()))
    else:
        report.print_race(found, values.top)
    if found.failed:
        raise typer.Exit(4)


def _follow(directory: Path, values: RankSettings) -> None:
    from lidar_cli.ranking.watch import Landed, follow
    from lidar_cli.report.terminal import Terminal
    from lidar_cli.report.watch_log import WatchLog

    failed = False
    ledger = WatchLog(directory, values.jsonl, values.tensorboard)
    with Terminal() as terminal:
        for landed in follow(directory, values, terminal, ledger.known):
            if isinstance(landed, Landed):
                ledger.add(landed)
            else:
                failed = True
                write_remark(f"failed: {landed.path}: {landed.reason}")
    if failed:
        raise typer.Exit(4)
