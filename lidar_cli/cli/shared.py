"""What the commands share: options that are no settings, and the settings of one command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lidar_cli import configuration
from lidar_cli.errors import SettingsError, printable
from lidar_cli.runtime.streams import write_remark, write_results

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
            value = str(getattr(resolved.values, name))
            write_results(printable(f"{name:{width}} = {value:<12}  # {origin}"))
        raise typer.Exit
    if config is None and configuration.CONFIG_NAME in resolved.origins.values():
        write_remark(f"settings from ./{configuration.CONFIG_NAME}, which was found here")
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
    write_remark(f"wrote {path}")
