"""`lidar probe`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lidar_cli.api.checks import check_embeddings, check_exists, usable_embeddings
from lidar_cli.cli.options import Csv, Json, form_of, option, with_settings, write_form
from lidar_cli.configuration import parse_rates
from lidar_cli.errors import SettingsError
from lidar_cli.runtime.device import check_device_name
from lidar_cli.runtime.streams import write_results
from lidar_cli.settings import ProbeSettings


@with_settings(ProbeSettings)
def probe(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Feature files, each split 80/20 by seed.", metavar="FILE..."),
    ] = None,
    train: Annotated[
        list[Path] | None, option("--train", "Training rows; can be repeated.", "Data", "FILE")
    ] = None,
    test: Annotated[
        list[Path] | None, option("--test", "Test rows, one file for each --train.", "Data", "FILE")
    ] = None,
    json: Json = False,
    csv: Csv = False,
    *,
    settings: ProbeSettings,
) -> None:
    """Accuracy of a classifier trained with labels on stored embeddings.

    lidar probe ckpt.h5                            a linear probe, 80 % train
    lidar probe a.h5 b.h5 --method knn             nearest neighbours
    lidar probe --train train.h5 --test val.h5     a split of your own
    lidar probe turned.h5 --pretext rotation       no labels: the turn of an image
    """
    form = form_of(json=json, csv=csv)
    parse_rates(settings.learning_rates)
    if bool(files) == bool(train) or (
        len(test or []) not in ((0,) if files else (len(train or []),))
    ):
        raise SettingsError("probe takes feature files to split, or pairs of --train and --test")
    if settings.pretext is not None and not files:
        raise SettingsError(
            "--pretext rotation splits each file by image: give files without --train",
            code="pretext-pair",
        )
    check_device_name(settings.device)
    pairs = [*(train or []), *(test or [])]
    for path in pairs:
        check_exists(path, "no such file")
    for path in pairs:
        check_embeddings(path, "probe")
    status = 0
    if files:
        files, status = usable_embeddings(files, "probe", settings.pretext is not None)
        if not files and not csv:  # whose header needs the reports
            if json:
                write_results("[]")
            raise typer.Exit(status)
    from lidar_cli.probing.run import probe_files
    from lidar_cli.report import probe as report
    from lidar_cli.report.progress import Terminal

    with Terminal() as terminal:
        probes = probe_files(
            files or train or [], test or [None] * len(files or []), settings, terminal
        )
        for failure in probes.failed:
            terminal.note(f"error: {failure.train}: {failure.reason}")
    write_form(
        form,
        {"json": lambda: report.to_json(probes), "csv": lambda: report.to_csv(probes)},
        lambda: report.print_table(probes),
    )
    if probes.failed or status:
        raise typer.Exit(3)
