"""`lidar demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lidar_cli.cli.options import with_settings
from lidar_cli.runtime.device import check_device_name
from lidar_cli.runtime.files import check_makeable
from lidar_cli.settings import DemoSettings


@with_settings(DemoSettings)
def demo(
    directory: Annotated[
        Path, typer.Argument(help="Folder for checkpoints and features.", metavar="[DIR]")
    ] = Path("lidar-demo"),
    *,
    settings: DemoSettings,
) -> None:
    """Train 12 small checkpoints, rank them, compare with linear probes.

    lidar demo                                     two minutes, in ./lidar-demo
    lidar demo /tmp/demo --device cpu              another folder
    """
    check_device_name(settings.device)
    check_makeable(directory)
    from lidar_cli.demo.run import run_demo
    from lidar_cli.report.demo import print_demo
    from lidar_cli.report.progress import Terminal

    with Terminal() as terminal:
        outcome = run_demo(directory, settings, terminal)
    print_demo(outcome)
