"""`lidar demo` and its study."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from lidar_cli.cli.options import with_options
from lidar_cli.cli.shared import Config, ShowConfig, resolve
from lidar_cli.settings import DemoSettings


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
    resolved = resolve(DemoSettings, options, config, show_config)
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
