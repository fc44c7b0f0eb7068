"""`lidar inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lidar_cli.api.checks import check_checkpoint, check_layer, check_system
from lidar_cli.cli.options import Json, option, with_settings
from lidar_cli.errors import LidarError, NoProcess, SettingsError, first_line
from lidar_cli.runtime.files import is_hdf5
from lidar_cli.runtime.streams import write_remark, write_results
from lidar_cli.settings import InspectSettings

if TYPE_CHECKING:
    from lidar_cli.features.inspect import FeatureInspection


@with_settings(InspectSettings)
def inspect(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Checkpoints, or what extract takes, and feature files.", metavar="FILE..."
        ),
    ] = None,
    json: Json = False,
    formats: Annotated[
        bool, option("--formats", "Print the table of systems that are recognised, and end.")
    ] = False,
    *,
    settings: InspectSettings,
) -> None:
    """What checkpoints and feature files hold, and what extract would do.

    lidar inspect ckpt.pt                          names and shapes alone: fast
    lidar inspect runs/*/last.ckpt --json          several
    lidar inspect feats.h5                         verifies every number
    lidar inspect --formats                        the systems that are recognised
    """
    if bool(files) == formats:
        raise SettingsError("inspect takes either checkpoint files or --formats")
    check_layer(settings)
    check_system(settings)
    from lidar_cli.checkpoints import inspect as job
    from lidar_cli.report import inspect as report

    if formats:
        rows = job.formats()
        write_results(report.to_json(rows) if json else report.table(rows))
        write_remark(report.CONTAINERS)
        return
    inspections: list[job.Inspection | FeatureInspection] = []
    status = 0
    for file in files or []:
        try:
            if _is_hdf5(file):
                from lidar_cli.features.inspect import inspect_features

                inspections.append(inspect_features(file))
                continue
            check_checkpoint(file, "inspect")
            inspections.append(job.inspect_file(file, settings))
        except (SettingsError, NoProcess):
            raise
        except LidarError as error:
            status = error.exit_status
            is_advised = str(error).endswith("with --model")
            write_remark(f"error: {error}{', which extract and rank take' if is_advised else ''}")
        except (MemoryError, RecursionError) as error:
            status = LidarError.exit_status
            write_remark(f"error: {file}: {first_line(error)}")
    if json:
        write_results(report.to_json(inspections))
    elif inspections:
        write_results(report.to_text(inspections))
    if status:
        raise typer.Exit(status)


def _is_hdf5(path: Path) -> bool:
    try:
        return is_hdf5(path)
    except OSError:  # on the Hub, or reported where it is opened
        return False
