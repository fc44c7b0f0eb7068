"""The command line. A command parses its options, calls one job and prints the result by a report.

`options.with_settings` turns the fields of a settings class into options. Torch and all modules
that need it are imported inside the commands, so that `--help` and wrong arguments answer at once.
"""

from __future__ import annotations

import platform
import runpy
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from lidar_cli import __version__
from lidar_cli.api.checks import no_such_command
from lidar_cli.cli.cache import cache
from lidar_cli.cli.compare import compare
from lidar_cli.cli.demo import demo
from lidar_cli.cli.explain import explain
from lidar_cli.cli.extract import extract
from lidar_cli.cli.help import Command, Group
from lidar_cli.cli.inspect import inspect
from lidar_cli.cli.probe import probe
from lidar_cli.cli.rank import rank
from lidar_cli.cli.score import score
from lidar_cli.cli.usage import UsageError, usage_error
from lidar_cli.errors import EXIT_STATUSES, SettingsError

STATUSES = "; ".join(f"{status} {meaning}" for status, meaning in EXIT_STATUSES.items())
EPILOG = "\n".join(
    [
        "A first try: lidar demo. Options of a command: lidar rank --help.",
        "What a metric, an option or a status means: lidar explain.",
        *textwrap.wrap(f"Results go to stdout, all else to stderr. Exit status: {STATUSES}.", 76),
    ]
)


class Commands(Group):
    """The commands; a first word that is none of them is answered with the nearest."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the first word names. Raises SettingsError."""
        if args[0] not in self.commands and not args[0].startswith("-"):
            raise no_such_command(args[0], list(self.commands))
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="lidar",
    cls=Commands,
    help="Score and rank self-supervised checkpoints without labels.",
    epilog=EPILOG,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

for command in (demo, rank, compare, extract, score, probe, inspect, cache):  # in the order of use
    app.command(cls=Command)(command)
# So that an option's name is a topic: lidar explain --by
app.command(cls=Command, context_settings={"ignore_unknown_options": True})(explain)


def run() -> None:
    """Run a command and exit. Raises SettingsError for words that the command does not take."""
    try:
        status = program(prog_name="lidar", standalone_mode=False)
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(str(error), err=True)
            sys.exit(SettingsError.exit_status)
        raise usage_error(error) from error
    sys.exit(status or 0)


def _print_version(given: bool) -> None:
    if given:
        typer.echo(f"lidar {__version__} ({_torch_version()}, Python {platform.python_version()})")
        raise typer.Exit


def _torch_version() -> str:
    """The versions of torch and of its CUDA or ROCm, from a file: importing torch takes seconds."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return "no torch"
    versions = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    toolkits = {"CUDA": versions.get("cuda"), "ROCm": versions.get("hip")}
    built_for = [f"{name} {version}" for name, version in toolkits.items() if version]
    return ", ".join([f"torch {versions['__version__']}", *(built_for or ["CPU only"])])


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


program = typer.main.get_command(app)  # once: calling `app` builds all options each time
