"""The command line: parse, call one job, hand its record to the report.

An option is a field of a settings class, made one by `options.with_options`. Torch and everything
above it are imported inside the commands, so that `--help` and wrong arguments answer at once.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lidar_cli import __version__, configuration
from lidar_cli.errors import LidarError, SettingsError, printable
from lidar_cli.options import with_options
from lidar_cli.settings import (
    DemoSettings,
    ExtractSettings,
    InspectSettings,
    ProbeSettings,
    RankSettings,
    ScoreSettings,
    parse_rates,
)

if TYPE_CHECKING:
    from lidar_cli.report.page.document import Page

EPILOG = (
    "Results go to stdout, everything else to stderr. Exit status: 0 done, 2 wrong usage, "
    "3 input refused, 4 ranked but some checkpoints failed, 130 interrupted."
)

app = typer.Typer(
    name="lidar",
    help="Score and rank self-supervised checkpoints without labels.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Config = Annotated[Path | None, typer.Option("--config", help="TOML file of settings.")]
ShowConfig = Annotated[
    bool, typer.Option("--show-config", help="Print the settings and where each came from.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else.")]
Report = Annotated[
    Path | None, typer.Option("--report", help="Write a page, .html, that holds all it needs.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing --report.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print CSV on stdout, and nothing else.")]


@app.command()
@with_options(ExtractSettings)
def extract(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="Checkpoint file, Hugging Face folder, hf-hub:ORG/NAME or timm:NAME.",
            metavar="CKPT",
        ),
    ],
    config: Config = None,
    show_config: ShowConfig = False,
    *,
    options: dict[str, Any],
) -> None:
    """Embed augmented views of images with a checkpoint, into an HDF5 feature file."""
    resolved = _resolve(ExtractSettings, options, config, show_config)
    from lidar_cli.jobs.extract import extract_checkpoint
    from lidar_cli.jobs.place import find_place
    from lidar_cli.report.terminal import Terminal

    place = find_place()
    with Terminal(place.speaks) as terminal:
        done = extract_checkpoint(checkpoint, resolved.values, terminal, place)
    if done.tells:
        typer.echo(done.path)


@app.command()
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
    _one_of(json=json, csv=csv)
    resolved = _resolve(ScoreSettings, options, config, show_config)
    if plot is not None:
        from lidar_cli.report.plot import check_plot

        check_plot(plot)
    _check_page(page, overwrite)
    from lidar_cli.jobs.place import find_place
    from lidar_cli.jobs.score import parse_metrics, score_file
    from lidar_cli.jobs.scoring.converge import converge_file
    from lidar_cli.jobs.scoring.fellows import meeting
    from lidar_cli.report import scores as report
    from lidar_cli.report.terminal import Terminal

    place = find_place()
    values = place.settled(resolved.values)
    wanted = parse_metrics(values.metrics)
    if values.converge and place.ranks > 1:
        raise SettingsError("--converge: one process reads the file; leave out torchrun")
    found, failed = [], 0
    with Terminal(place.speaks) as terminal, meeting(place) as fellows:
        for file in files:
            try:
                if values.converge:
                    found += converge_file(file, values, terminal)
                else:
                    found += score_file(file, values, terminal, fellows)
            except SettingsError:
                raise
            except LidarError as error:
                failed = error.exit_status
                terminal.note(f"error: {error}")
    if not place.speaks:
        return  # with status 0: the engine would end the one that is still to print
    if json:
        typer.echo(report.to_json(found))
    elif csv:
        typer.echo(report.to_csv(found), nl=False)
    elif found:
        report.print_table(found, wanted)
    if plot is not None and found:
        from lidar_cli.report.plot import plot_spectra

        plot_spectra(found, plot)
        sys.stderr.write(f"wrote {plot}\n")
    if page is not None and found:
        from lidar_cli.jobs.ranking.hyperparameters import from_names
        from lidar_cli.report.page.scores import scores_page

        _write_page(scores_page(found, from_names([s.file for s in found])), page, overwrite)
    if failed:
        raise typer.Exit(failed)


@app.command()
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
    _one_of(json=json, csv=csv, markdown=markdown, quiet=quiet)
    resolved = _resolve(RankSettings, options, config, show_config)
    if resolved.values.collect:
        _one_of(collect=True, watch=resolved.values.watch, race=resolved.values.race)
    if resolved.values.watch:
        told = resolved.values
        _one_of(watch=True, json=json, csv=csv, markdown=markdown, quiet=quiet)
        _one_of(watch=True, race=told.race, report=page, top=told.top)
        _one_of(watch=True, oracle=told.oracle, params=told.params)
        _follow(directory, told)
        return
    if resolved.values.race:
        told = resolved.values
        _one_of(race=True, report=page, oracle=told.oracle, params=told.params)
        _one_of(race=True, csv=csv, markdown=markdown, no_store=not told.store)
        _race(directory, told, json, quiet)
        return
    for name in ("watch_for", "jsonl", "tensorboard"):
        if getattr(resolved.values, name) is not None:
            raise SettingsError(f"--{name.replace('_', '-')} belongs to --watch; add that")
    _check_page(page, overwrite)
    from lidar_cli.jobs.place import find_place
    from lidar_cli.jobs.rank import rank_together
    from lidar_cli.jobs.ranking.oracle import check_tables, judge, told_of_training
    from lidar_cli.report import ranking as report
    from lidar_cli.report.terminal import Terminal

    check_tables(resolved.values, report=page is not None)
    oracle, parameters = None, {}
    place = find_place()
    with Terminal(place.speaks) as terminal:
        found = rank_together(directory, resolved.values, terminal, place)
        if found is None:
            terminal.note("all checkpoints are scored; another process prints the ranking")
            return
        if resolved.values.oracle is not None:
            oracle = judge(found, resolved.values, terminal)
        if page is not None:
            parameters = told_of_training(found, resolved.values, terminal)
        if quiet or resolved.values.top is not None:
            report.check_single_group(found)
        everything, found = found, report.top(found, resolved.values.top)
    if json:
        typer.echo(report.to_json(found, oracle))
    elif csv:
        typer.echo(report.to_csv(found, oracle), nl=False)
    elif markdown:
        typer.echo(report.to_markdown(found, oracle))
    elif quiet:
        typer.echo(report.to_paths(found, for_people=sys.stdout.isatty()), nl=False)
    else:
        report.print_tables(found, oracle)
    if page is not None:
        from lidar_cli.report.page.ranking import ranking_page

        _write_page(ranking_page(everything, oracle, parameters), page, overwrite)
    if found.failed:
        if quiet or json or csv or markdown:
            for row in found.failed:
                sys.stderr.write(printable(f"failed: {row.path}: {row.reason}") + "\n")
        raise typer.Exit(4)


@app.command()
@with_options(ProbeSettings)
def probe(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Feature files, each split 80/20 by seed.", metavar="FILE..."),
    ] = None,
    train: Annotated[
        list[Path] | None, typer.Option("--train", help="Training rows; can be repeated.")
    ] = None,
    test: Annotated[
        list[Path] | None, typer.Option("--test", help="Test rows, one file for each --train.")
    ] = None,
    json: Json = False,
    csv: Csv = False,
    config: Config = None,
    show_config: ShowConfig = False,
    *,
    options: dict[str, Any],
) -> None:
    """The oracle: how well a classifier trained with labels reads stored embeddings."""
    _one_of(json=json, csv=csv)
    resolved = _resolve(ProbeSettings, options, config, show_config)
    parse_rates(resolved.values.learning_rates)
    if bool(files) == bool(train) or (
        len(test or []) not in ((0,) if files else (len(train or []),))
    ):
        raise SettingsError("probe takes feature files to split, or pairs of --train and --test")
    from lidar_cli.jobs.probe import probe_files
    from lidar_cli.report import probe as report
    from lidar_cli.report.terminal import Terminal

    with Terminal() as terminal:
        found = probe_files(
            files or train or [], test or [None] * len(files or []), resolved.values, terminal
        )
        for left in found.failed:
            terminal.note(f"error: {left.train}: {left.reason}")
    if json:
        typer.echo(report.to_json(found))
    elif csv:
        typer.echo(report.to_csv(found), nl=False)
    else:
        report.print_table(found)
    if found.failed:
        raise typer.Exit(3)


@app.command("inspect")
@with_options(InspectSettings)
def inspect_(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Checkpoint files, or what extract takes.", metavar="FILE..."),
    ] = None,
    json: Json = False,
    formats: Annotated[
        bool, typer.Option("--formats", help="Print the table of formats and end.")
    ] = False,
    config: Config = None,
    show_config: ShowConfig = False,
    *,
    options: dict[str, Any],
) -> None:
    """What checkpoints hold, and what extract would do with them, from names and shapes alone."""
    resolved = _resolve(InspectSettings, options, config, show_config)
    if bool(files) == formats:
        raise SettingsError("inspect takes either checkpoint files or --formats")
    from lidar_cli.jobs import inspect as job
    from lidar_cli.report import inspect as report

    if formats:
        typer.echo(report.formats_to_json(job.formats()) if json else report.table(job.formats()))
        return
    found, failed = [], 0
    for file in files or []:
        try:
            found.append(job.inspect_file(file, resolved.values))
        except SettingsError:
            raise
        except LidarError as error:
            failed = error.exit_status
            sys.stderr.write(f"error: {printable(str(error))}\n")
    if json:
        typer.echo(report.to_json(found))
    elif found:
        typer.echo(report.to_text(found))
    if failed:
        raise typer.Exit(failed)


@app.command()
@with_options(DemoSettings)
def demo(
    directory: Annotated[
        Path, typer.Argument(help="Where checkpoints and features go.", metavar="[DIR]")
    ] = Path("lidar-demo"),
    study: Annotated[
        bool,
        typer.Option(
            "--study", help="Train 4 methods on 3 image sets instead, every metric at 3 q. Minutes."
        ),
    ] = False,
    config: Config = None,
    show_config: ShowConfig = False,
    *,
    options: dict[str, Any],
) -> None:
    """Train 12 small checkpoints on embedded images, rank them, compare with linear probes."""
    resolved = _resolve(DemoSettings, options, config, show_config)
    from lidar_cli.report.terminal import Terminal

    if study:
        from lidar_cli.jobs.study.study import run_study
        from lidar_cli.report.study import print_study, write_study

        with Terminal() as terminal:
            seen = run_study(directory, resolved.values, terminal)
        command = shlex.join(
            ["lidar", "demo", "--study", str(directory), "--seed", str(resolved.values.seed)]
        )
        print_study(seen, write_study(seen, directory, command))
        return
    from lidar_cli.jobs.demo import run_demo
    from lidar_cli.report import demo as report

    with Terminal() as terminal:
        found = run_demo(directory, resolved.values, terminal)
    report.print_demo(found)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"lidar {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _resolve(
    cls: type[configuration.S], options: dict[str, Any], config: Path | None, show: bool
) -> configuration.Resolved[configuration.S]:
    resolved = configuration.resolve(cls, options, config=config)
    if show:
        width = max(map(len, resolved.origins))
        for name, origin in resolved.origins.items():
            typer.echo(f"{name:{width}} = {getattr(resolved.values, name)!s:<12}  # {origin}")
        raise typer.Exit
    if config is None and configuration.CONFIG_NAME in resolved.origins.values():
        sys.stderr.write(f"settings from ./{configuration.CONFIG_NAME}, which was found here\n")
    return resolved


def _race(directory: Path, values: RankSettings, json: bool, quiet: bool) -> None:
    from lidar_cli.jobs.ranking.race import race_directory
    from lidar_cli.report import race as report
    from lidar_cli.report.terminal import Terminal

    with Terminal() as terminal:
        found = race_directory(directory, values, terminal)
        if json or quiet:
            terminal.note(report.verdict(found))
    if json:
        typer.echo(report.to_json(found, values.top))
    elif quiet:
        typer.echo(report.to_paths(found, values.top, sys.stdout.isatty()), nl=False)
    else:
        report.print_race(found, values.top)
    if found.failed:
        raise typer.Exit(4)


def _follow(directory: Path, values: RankSettings) -> None:
    from lidar_cli.jobs.ranking.follow import Landed, follow
    from lidar_cli.report.ledger import Ledger
    from lidar_cli.report.terminal import Terminal

    failed = False
    with Terminal() as terminal, Ledger(directory, values.jsonl, values.tensorboard) as ledger:
        for landed in follow(directory, values, terminal, ledger.known):
            if isinstance(landed, Landed):
                ledger.add(landed)
            else:
                failed = True
                sys.stderr.write(printable(f"failed: {landed.path}: {landed.reason}") + "\n")
    if failed:
        raise typer.Exit(4)


def _one_of(**flags: object) -> None:
    given = [f"--{name.replace('_', '-')}" for name, on in flags.items() if on]
    if len(given) > 1:
        raise SettingsError(f"{' and '.join(given)} exclude each other; give one")


def _check_page(path: Path | None, overwrite: bool) -> None:
    if path is not None:
        from lidar_cli.report.page.document import check_page

        check_page(path, overwrite)
    elif overwrite:
        raise SettingsError("--overwrite replaces an existing --report; name one")


def _write_page(page: Page, path: Path, overwrite: bool) -> None:
    from lidar_cli.report.page.document import write_page

    write_page(page, path, overwrite)
    sys.stderr.write(f"wrote {path}\n")
