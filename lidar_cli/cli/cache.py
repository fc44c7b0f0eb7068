"""`lidar cache`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from lidar_cli.cli.options import Json, option
from lidar_cli.errors import InputError, SettingsError
from lidar_cli.runtime.files import did_you_mean
from lidar_cli.runtime.streams import write_remark, write_results


def cache(
    directory: Annotated[
        Path, typer.Argument(help="Directory that is ranked.", metavar="[DIR]")
    ] = Path(),
    folder: Annotated[
        Path | None, option("--cache", "Folder of the cache [default: DIR/.lidar].", value="DIR")
    ] = None,
    prune: Annotated[
        bool, option("--prune", "Remove what no checkpoint uses; asks first.")
    ] = False,
    dry_run: Annotated[
        bool, option("--dry-run", "With --prune: list the files, remove none.")
    ] = False,
    yes: Annotated[bool, option("--yes", "With --prune: do not ask.")] = False,
    json: Json = False,
) -> None:
    """Size of the cache by checkpoint; --prune removes what nothing uses.

    lidar cache runs/                              what takes how much room
    lidar cache runs/ --prune                      remove what nothing uses
    """
    if (dry_run or yes) and not prune:
        raise SettingsError("--dry-run and --yes belong to --prune; add that")
    if not directory.is_dir():
        expected = "; cache takes the directory that is ranked"
        raise InputError(
            f"{directory}: no such directory{did_you_mean(directory) or expected}",
            code="no-such-directory",
        )
    from lidar_cli.ranking.pruning import list_cache, remove_unused
    from lidar_cli.report import cache as report

    cache_folder, files = list_cache(directory, folder)
    unused, removed = [file for file in files if file.unused], []
    if prune and not dry_run and unused:
        _confirm(report.count_and_size(unused), yes)
        removed = remove_unused(cache_folder, unused)
    if json:
        write_results(report.to_json(cache_folder, files, removed))
    elif prune:
        listed, verb = (unused, "would be removed") if dry_run else (removed, "removed")
        for file in listed:
            write_remark(f"{file.name}: {file.unused}")
        write_results(f"{report.count_and_size(listed)} {verb}")
    else:
        named = f" --cache {shlex.quote(str(folder))}" if folder else ""
        command = f"lidar cache {shlex.quote(str(directory))}{named} --prune"
        report.print_sizes(cache_folder, files, command)


def _confirm(what: str, yes: bool) -> None:
    """Ask on a terminal. Raises SettingsError where nobody can answer, Exit after a no."""
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise SettingsError(
            f"--prune removes {what}; without a terminal, add --yes, or --dry-run to list them"
        )
    if not typer.confirm(f"Remove what no checkpoint uses: {what}?", err=True):
        raise typer.Exit(1)
