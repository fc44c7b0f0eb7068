"""Trains and measures all runs of the study and compares metrics with accuracies.

Four methods are trained by random search on three embedded sets; every metric of every checkpoint
is compared with the accuracy of its backbone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from lidar_cli.data.builtin import ATTRIBUTION
from lidar_cli.errors import InputError
from lidar_cli.runtime.processes import run_parallel
from lidar_cli.runtime.progress import Progress
from lidar_cli.settings import DemoSettings
from study.runs import Measured, Size, all_runs, read_measured, train_and_measure
from study.summary import (
    POOLED,
    Agreement,
    MetricSummary,
    Spread,
    agreements,
    metric_summaries,
    spreads,
)

LEVEL = 0.95  # of the intervals


@dataclass(frozen=True)
class Study:
    """The results of the study."""

    seed: int
    size: Size
    measured: tuple[Measured, ...]
    spreads: tuple[Spread, ...]  # one for each set
    agreements: tuple[Agreement, ...]
    pooled: tuple[MetricSummary, ...]  # over settings, the checkpoints of all methods together
    within: tuple[MetricSummary, ...]  # over settings and methods, those of each method alone
    now: int  # runs of this call; the others were measured before
    seconds: float  # of this call
    versions: dict[str, str]
    level: float = LEVEL
    attribution: str = ATTRIBUTION


def run_study(
    directory: Path,
    settings: DemoSettings,
    progress: Progress | None = None,
    size: Size | None = None,
) -> Study:
    """Train and measure the runs without measurements, and compare all.

    Raises InputError if the directory holds another study or cannot be written.
    """
    size, progress, begun = size or Size(), progress or Progress(), time.monotonic()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{directory}: cannot be made: {error.strerror}") from error
    measured, now = _measure_all(directory, settings.seed, size, progress)
    compared = agreements(measured, size, LEVEL, settings.seed)
    return Study(
        settings.seed,
        size,
        tuple(measured),
        tuple(spreads(measured, size)),
        tuple(compared),
        tuple(metric_summaries([a for a in compared if a.method == POOLED])),
        tuple(metric_summaries([a for a in compared if a.method != POOLED])),
        now,
        time.monotonic() - begun,
        {name: version(name) for name in ("lidar-cli", "torch", "timm", "numpy", "scikit-learn")},
    )


def _measure_all(
    directory: Path, seed: int, size: Size, progress: Progress
) -> tuple[list[Measured], int]:
    """The measurements of all runs, in their order, and the number of runs of this call."""
    runs = all_runs(size)
    todo = [run for run in runs if read_measured(run, directory, seed, size) is None]
    tasks = [(run, directory, seed, size) for run in todo]
    run_parallel(
        train_and_measure, tasks, "training and measuring", progress, done=len(runs) - len(todo)
    )
    records = [read_measured(run, directory, seed, size) for run in runs]
    return [measured for measured in records if measured is not None], len(todo)
