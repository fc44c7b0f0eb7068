"""What the commands share: options that are no settings, and the settings of one command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lidar_cli import configuration
from lidar_cli.errors import SettingsError

if TYPE_CHECKING:
    from lidar_cli.report.page.document import Page

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


def resolve(
    cls: type[configuration.S], options: dict[str, Any], config: Path | None, show: bool
) -> configuration.Resolved[configuration.S]:
    """The settings of a command; with `show` they are printed, and the command ends.

    Raises SettingsError as `configuration.resolve`.
    """
    resolved = configuration.resolve(cls, options, config=config)
    if show:
        width = max(map(len, resolved.origins))
        for name, origin in resolved.origins.items():
            typer.echo(f"{name:{width}} = {getattr(resolved.values, name)!s:<12}  # {origin}")
        raise typer.Exit
    if config is None and configuration.CONFIG_NAME in resolved.origins.values():
        sys.stderr.write(f"settings from ./{configuration.CONFIG_NAME}, which was found here\n")
    return resolved


def one_of(**flags: object) -> None:
    """Raise SettingsError if more than one of these options is given."""
    given = [f"--{name.replace('_', '-')}" for name, on in flags.items() if on]
    if len(given) > 1:
        raise SettingsError(f"{' and '.join(given)} exclude each other; give one")


def check_page(path: Path | None, overwrite: bool) -> None:
    """Raise SettingsError or MissingExtra, before the work, if a page cannot be written."""
    if path is not None:
        from lidar_cli.report.page import document

        document.check_page(path, overwrite)
    elif overwrite:
        raise SettingsError("--overwrite replaces an existing --report; name one")


def write_page(page: Page, path: Path, overwrite: bool) -> None:
    """Write a page and say so. Raises InputError if the disk refuses."""
    from lidar_cli.report.page import document

    document.write_page(page, path, overwrite)
    sys.stderr.write(f"wrote {path}\n")
