"""`lidar demo`."""

from __future__ import annotations

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
    config: Config = None,
    show_config: ShowConfig = False,
    *,
    options: dict[str, Any],
) -> None:
    """Train 12 small checkpoints on embedded images, rank them, compare with linear probes."""
    resolved = resolve(DemoSettings, options, config, show_config)
    from lidar_cli.demo.run import run_demo
    from lidar_cli.report import demo as report
    from lidar_cli.report.terminal import Terminal

    with Terminal() as terminal:
        found = run_demo(directory, resolved.values, terminal)
    report.print_demo(found)
