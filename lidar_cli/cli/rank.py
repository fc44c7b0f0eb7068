"""`lidar rank`, with --race and --watch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lidar_cli.api.checks import check_rank, parse_columns
from lidar_cli.cli.options import (
    Csv,
    Json,
    Markdown,
    Overwrite,
    Report,
    Verbose,
    check_report,
    form_of,
    one_of,
    option,
    with_settings,
    write_form,
)
from lidar_cli.cli.toy_data import note_toy_data
from lidar_cli.core.metrics import METRICS
from lidar_cli.errors import SettingsError
from lidar_cli.ranking.paths import Selection, select
from lidar_cli.runtime.device import read_rank_info
from lidar_cli.runtime.streams import write_remark
from lidar_cli.settings import RankSettings

if TYPE_CHECKING:
    from lidar_cli.ranking.oracle import Oracle
    from lidar_cli.ranking.session import Ranking
    from lidar_cli.report.ranking import View


@with_settings(RankSettings)
def rank(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="Checkpoints, folders of them, or patterns such as 'runs/**/last.ckpt'.",
            metavar="PATH...",
        ),
    ],
    json: Json = False,
    csv: Csv = False,
    markdown: Markdown = False,
    quiet: Annotated[bool, option("--quiet", "Print paths alone, best first, one a line.")] = False,
    columns: Annotated[
        str | None,
        option(
            "--columns",
            "Metrics in the table, with commas, after the one that orders.",
            value="METRICS",
        ),
    ] = None,
    everything: Annotated[bool, option("--all", "Show every metric that is computed.")] = False,
    verbose: Verbose = False,
    page: Report = None,
    overwrite: Overwrite = False,
    *,
    settings: RankSettings,
) -> None:
    """Order checkpoints, best first, without labels.

    lidar rank runs/ --data imagenet/              every checkpoint under runs/
    lidar rank runs/ --data photos/ -n 500         fewer images, sooner done
    lidar rank a.pt b.pt 'runs/*/last.ckpt'        files and patterns
    lidar rank runs/ --report ranking.html         the same as a page with charts
    best=$(lidar rank runs/ --data photos/ --top 1 --quiet)   for scripts
    """
    form = form_of(json=json, csv=csv, markdown=markdown, quiet=quiet)
    one_of(columns=columns, all=everything)
    one_of(columns=columns, watch=settings.watch, race=settings.race)
    _check(settings, page, json=json, csv=csv, markdown=markdown, quiet=quiet)
    shown = parse_columns(columns, settings.layer), everything, verbose
    named = [name for name in shown[0] or () if name in METRICS]  # not those of a group
    settings = replace(settings, metrics=",".join([settings.metrics, *named]))
    selection = select(paths, settings)
    check_rank(selection, settings)
    check_report(page, overwrite)
    if settings.dry_run:
        _dry_run(selection, settings, form)
        return
    if settings.watch:
        _watch(selection, settings)
        return
    if settings.race:
        _race(selection, settings, form)
        return
    _rank(selection, settings, form, shown, page, overwrite)


def _rank(
    selection: Selection,
    settings: RankSettings,
    form: str,
    shown: tuple[tuple[str, ...] | None, bool, bool],
    page: Path | None,
    overwrite: bool,
) -> None:
    """Rank, print and write the page. form: `json`, `csv`, `markdown`, `quiet` or empty.

    shown: the values of --columns, --all and --verbose.
    """
    from lidar_cli.ranking.oracle import compare_with_oracle, hyperparameters_for_page
    from lidar_cli.ranking.session import rank_together, with_runs
    from lidar_cli.report import ranking as report
    from lidar_cli.report.progress import Terminal

    view = report.View(*shown, settings.top, settings.per_run)
    oracle, parameters, paged = None, {}, None
    rank_info = read_rank_info()
    with Terminal(rank_info.is_main, form == "quiet") as terminal:
        ranking = rank_together(selection, settings, terminal, rank_info)
        if ranking is None:
            terminal.note("all checkpoints are scored; another process prints the ranking")
            return
        ranking = replace(ranking, command=tuple(sys.argv[1:]))
        if settings.oracle is not None:
            oracle = compare_with_oracle(ranking, settings, terminal)
        if page is not None:
            parameters = hyperparameters_for_page(ranking, settings, terminal)
            paged = ranking if settings.per_run else with_runs(ranking)
        if form == "quiet" or settings.top is not None:
            report.check_single_group(ranking)
    try:
        _print(ranking, oracle, form, view)
    finally:  # the page is written even if stdout cannot be
        if page is not None and paged is not None:
            from lidar_cli.report.page.content import ranking_page
            from lidar_cli.report.page.document import write_page

            write_page(ranking_page(paged, oracle, parameters), page, overwrite)
    if form:
        for file in ranking.failed:
            write_remark(f"failed: {file.path}: {file.reason}")
    if form in ("quiet", "csv"):  # JSON and Markdown have it
        for trust in ranking.trust:
            if trust is not None and not trust.believe:
                write_remark(f"caution: {trust.sentence} (lidar explain trust)")
    note_toy_data(ranking.data, list(ranking.checkpoints), *(["--overwrite"] if page else []))
    if ranking.failed:
        raise typer.Exit(4)


def _print(ranking: Ranking, oracle: Oracle | None, form: str, view: View) -> None:
    """Print a ranking, or with --per-run its runs, in one form."""
    from lidar_cli.report import ranking as report
    from lidar_cli.report import runs as runs_report

    source = runs_report if view.per_run else report
    top = source.top(ranking, view.top)
    if view.top is not None and form != "json":  # --top is of checkpoints
        top = replace(top, baseline=())
    whole = top if view.per_run else ranking
    forms: dict[str, Callable[[], str | bytes]] = {
        "json": lambda: report.to_json_of(ranking, oracle, view),
        "csv": lambda: report.to_csv(top, oracle),
        "markdown": lambda: report.to_markdown(top, oracle),
        "quiet": lambda: source.to_paths(top),
    }
    if view.per_run:
        forms["csv"] = lambda: runs_report.to_csv(top)
        forms["markdown"] = lambda: runs_report.to_markdown(top)
    write_form(form, forms, lambda: report.print_tables(whole, oracle, view))


def _check(settings: RankSettings, page: Path | None, **formats: bool) -> None:
    """Raise SettingsError for options that exclude each other or need another."""
    if settings.dry_run:
        one_of(dry_run=True, watch=settings.watch, race=settings.race, report=page)
        one_of(dry_run=True, **(formats | {"json": False}))
    if settings.collect:
        one_of(collect=True, watch=settings.watch, race=settings.race)
    if settings.watch:
        one_of(watch=True, **formats)
        one_of(watch=True, race=settings.race, report=page, top=settings.top)
        one_of(watch=True, oracle=settings.oracle, params=settings.params)
        one_of(watch=True, per_run=settings.per_run, baseline=settings.baseline)
    if settings.race:
        one_of(race=True, report=page, oracle=settings.oracle, params=settings.params)
        csv, markdown = formats["csv"], formats["markdown"]
        one_of(race=True, csv=csv, markdown=markdown, no_store=not settings.store)
        one_of(race=True, per_run=settings.per_run, baseline=settings.baseline)
    if not settings.watch:
        for name in ("watch_for", "jsonl", "tensorboard", "alarm"):
            if getattr(settings, name) is not None:
                raise SettingsError(f"--{name.replace('_', '-')} belongs to --watch; add that")
    if settings.labels_per_class is not None and settings.oracle != "probe":
        raise SettingsError(
            "--labels-per-class says how many labels a probe is trained on; add --oracle probe",
            code="no-probe",
        )
    if settings.params is not None and settings.oracle is None and page is None:
        raise SettingsError(
            "--params groups accuracies by hyperparameter, or draws metrics against it; add "
            "--oracle for the accuracies or --report for the drawing"
        )


def _dry_run(selection: Selection, settings: RankSettings, form: str) -> None:
    from lidar_cli.ranking.dry_run import dry_run
    from lidar_cli.report import dry_run as report
    from lidar_cli.report.progress import Terminal

    with Terminal() as terminal:
        run = dry_run(selection, settings, terminal)
    write_form(form, {"json": lambda: report.to_json(run)}, lambda: report.print_dry_run(run))


def _race(selection: Selection, settings: RankSettings, form: str) -> None:
    from lidar_cli.ranking.race import race_directory
    from lidar_cli.report import race as report
    from lidar_cli.report.progress import Terminal

    if read_rank_info().ranks > 1:
        raise SettingsError("--race is run by one process; start it without torchrun")
    with Terminal(quiet=form == "quiet") as terminal:
        race = race_directory(selection, settings, terminal)
        if form:
            terminal.note(report.result_text(race))
    write_form(
        form,
        {
            "json": lambda: report.to_json(race, settings.top),
            "quiet": lambda: report.to_paths(race, settings.top),
        },
        lambda: report.print_race(race, settings.top),
    )
    note_toy_data(race.data, list(race.names))
    if race.failed:
        raise typer.Exit(4)


def _watch(selection: Selection, settings: RankSettings) -> None:
    from lidar_cli.ranking.watch import ScoredCheckpoint, follow
    from lidar_cli.report.progress import Terminal
    from lidar_cli.report.watch_log import WatchLog, alarm_text

    failed, alarm = False, None
    log = WatchLog(selection.directory, settings.jsonl, settings.tensorboard)
    with Terminal() as terminal:
        for scored in follow(selection, settings, terminal, log.recorded):
            if isinstance(scored, ScoredCheckpoint):
                fall = log.add(scored)
                if settings.alarm is not None and fall.exceeds(settings.alarm):
                    alarm = alarm_text(scored, fall)
                    break
            else:
                failed = True
                write_remark(f"failed: {scored.path}: {scored.reason}")
    if alarm is not None:
        write_remark(alarm)
        raise typer.Exit(5)
    if failed:
        raise typer.Exit(4)
