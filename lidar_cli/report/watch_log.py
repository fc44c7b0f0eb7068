"""Checkpoints as they land: a JSON line each, and points for TensorBoard."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from lidar_cli.errors import InputError
from lidar_cli.ranking.hyperparameters import from_names
from lidar_cli.ranking.watch import Landed
from lidar_cli.report.jsonl import Lines
from lidar_cli.report.ranking import metrics_of
from lidar_cli.report.tensorboard import TensorBoardWriter
from lidar_cli.runtime.streams import write_results

STEPS = ("step", "iter", "epoch")  # words before the number in a file's name that is its time


class WatchLog:
    """Appends to a file, stdout where there is none, and to TensorBoard's, to each what it lacks.

    known: path and key of each checkpoint that none of them lacks.
    Raises what `Lines` and `TensorBoardWriter` raise.
    """

    def __init__(self, directory: Path, jsonl: Path | None, tensorboard: Path | None) -> None:
        self._directory = directory
        self._jsonl = jsonl
        self._lines = Lines("--jsonl", jsonl) if jsonl else None
        self._board = TensorBoardWriter(tensorboard) if tensorboard else None
        self.known = self._lines.known if self._lines else frozenset()
        if self._board:
            self.known &= self._board.known

    def add(self, landed: Landed) -> None:
        """Write one checkpoint down, so that it is there whatever happens next.

        Raises InputError where it cannot be, the board's after its line is out.
        """
        row = landed.row
        step = _step(row.path)
        told = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "path": row.path,
            "aliases": list(row.aliases),
            "sha256": landed.sha256,
            "key": landed.key,
            "step": step,
            "by": landed.by.name,
            "direction": landed.by.direction,
            "value": row.value,
            "reason": row.reason,
            "ci_low": row.interval.ci_low,
            "ci_high": row.interval.ci_high,
            "metrics": metrics_of(row),
        }
        this = (row.path, landed.key)
        if self._lines is None:
            write_results(json.dumps(told, allow_nan=False))
        elif this not in self._lines.known:
            try:
                self._lines.add(told)
            except OSError as error:
                raise InputError(
                    f"--jsonl {self._jsonl}: cannot be written: {error.strerror}"
                ) from error
        if self._board and this not in self._board.known:
            run = Path(row.path).parent.relative_to(self._directory).as_posix()
            self._board.add(run, landed, step)


def _step(path: str) -> int | None:
    """The step that a file's name tells, else its epoch."""
    numbers = from_names([Path(path).name])[Path(path).name]
    for word in STEPS:
        number = numbers.get(word)
        if isinstance(number, float):
            return int(number)
    return None
