"""The command line. A command parses its options, calls one job and prints the result by a report.

`options.with_settings` turns the fields of a settings class into options. Torch and all modules
that need it are imported inside the commands, so that `--help` and wrong arguments answer at once.
"""

from __future__ import annotations

import platform
import runpy
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from lidar_cli import __version__
from lidar_cli.cli.demo import demo
from lidar_cli.cli.extract import extract
from lidar_cli.cli.inspect import inspect
from lidar_cli.cli.probe import probe
from lidar_cli.cli.rank import rank
from lidar_cli.cli.score import score

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

for command in (extract, score, rank, probe, inspect, demo):
    app.command()(command)


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
