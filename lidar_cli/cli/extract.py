"""`lidar extract`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lidar_cli.api.checks import check_extract
from lidar_cli.cli.options import with_settings
from lidar_cli.cli.toy_data import note_toy_data
from lidar_cli.runtime.device import read_rank_info
from lidar_cli.runtime.streams import write_results
from lidar_cli.settings import EMBEDDED, ExtractSettings


@with_settings(ExtractSettings)
def extract(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            help="A checkpoint, in a file or a folder; hf-hub:ORG/NAME or timm:NAME.",
            metavar="CKPT",
        ),
    ],
    *,
    settings: ExtractSettings,
) -> None:
    """Embed views of images with one checkpoint, into an HDF5 file.

    lidar extract ckpt.pt --data imagenet/ -o ckpt.h5
    lidar extract timm:resnet50.a1_in1k --data photos/ -n 500
    lidar extract ckpt.pt --data imagenet/ --layer backbone,projector
    """
    checkpoint = check_extract(checkpoints, settings)
    from lidar_cli.extraction.run import extract_checkpoint
    from lidar_cli.report.progress import Terminal
    from lidar_cli.report.text import path_lines

    if settings.dry_run:
        from lidar_cli.extraction.measure import measure_checkpoint
        from lidar_cli.extraction.run import stem
        from lidar_cli.report.dry_run import print_extraction

        with Terminal() as terminal:
            plan, measured = measure_checkpoint(checkpoint, settings, terminal)
        print_extraction(plan, measured, str(settings.output or f"{stem(checkpoint)}.h5"))
        return
    rank_info = read_rank_info()
    with Terminal(rank_info.is_main) as terminal:
        terminal.checkpoint(checkpoint.name)
        done = extract_checkpoint(checkpoint, settings, terminal, rank_info)
    if done.reports_result:
        write_results(path_lines([str(done.path)]))
        note_toy_data(
            settings.data or EMBEDDED,
            [str(checkpoint)],
            "--overwrite",
            result="these embeddings are of",
        )
