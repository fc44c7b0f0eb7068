"""The study: do label-free metrics order small checkpoints as a linear probe does?

Four methods are trained by random search on three embedded sets; every metric of every checkpoint
is compared with the accuracy of its backbone.
"""

from __future__ import annotations

from pathlib import Path

from lidar_cli.jobs.study_runs import Measured, Size, all_runs, carry_out, read_measured
from lidar_cli.jobs.watch import Watcher
from lidar_cli.jobs.workers import side_by_side


def measure_all(directory: Path, seed: int, size: Size, watcher: Watcher) -> list[Measured]:
    """Train and measure what is not yet measured; all of it, in the order of `all_runs`.

    Raises InputError if the directory holds another study or cannot be written.
    """
    runs = all_runs(size)
    todo = [run for run in runs if read_measured(run, directory, seed, size) is None]
    tasks = [(run, directory, seed, size) for run in todo]
    side_by_side(
        carry_out, tasks, "training and measuring", watcher, done=len(runs) - len(todo)
    )
    found = [read_measured(run, directory, seed, size) for run in runs]
    return [measured for measured in found if measured is not None]
