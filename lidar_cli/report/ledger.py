"""Checkpoints as they land: a JSON line each, and points for TensorBoard."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from lidar_cli.core.metrics import METRICS
from lidar_cli.errors import MissingExtra, SettingsError
from lidar_cli.jobs.ranking.follow import Landed
from lidar_cli.jobs.ranking.hyperparameters import from_names
from lidar_cli.report.ranking import metrics_of

STEPS = ("step", "iter", "epoch")  # words before the number in a file's name that is its time


class Ledger:
    """Appends to a file, or to stdout where there is none. A context manager.

    known: path and key of each line that the file held already.
    Raises SettingsError for a file that holds something else or cannot be written, MissingExtra
    if TensorBoard is wanted and not installed.
    """

    def __init__(self, directory: Path, jsonl: Path | None, tensorboard: Path | None) -> None:
        self.known = frozenset(_read(jsonl)) if jsonl else frozenset()
        self._directory = directory
        self._jsonl = jsonl
        self._board = _Board(tensorboard) if tensorboard else None
        self._written = len(self.known)
        if jsonl:
            _append(jsonl, "")

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        if self._board:
            self._board.close()

    def add(self, landed: Landed) -> None:
        """Write one checkpoint down, so that it is there whatever happens next."""
        row = landed.row
        step = _step(row.path)
        if self._board:
            run = Path(row.path).parent.relative_to(self._directory).as_posix()
            self._board.add(run, landed, self._written if step is None else step)
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
        line = json.dumps(told, allow_nan=False)
        if self._jsonl:
            _append(self._jsonl, f"{line}\n")
        else:
            typer.echo(line)
        self._written += 1


class _Board:
    """Event files of TensorBoard, a run for each folder of checkpoints."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtra("tensorboard", "tensorboard", "--tensorboard") from error
        self._new_writer = SummaryWriter
        self._folder = folder
        self._writers: dict[str, Any] = {}

    def add(self, run: str, landed: Landed, step: int) -> None:
        """A point for each metric that has a value."""
        if run not in self._writers:
            self._writers[run] = self._new_writer(str(self._folder / run))
        writer = self._writers[run]
        for name in METRICS:
            value = landed.row.score.value(name)
            if value is not None:
                writer.add_scalar(name, value, step)
        writer.flush()

    def close(self) -> None:
        """End every file."""
        for writer in self._writers.values():
            writer.close()


def _step(path: str) -> int | None:
    """The step that a file's name tells, else its epoch."""
    numbers = from_names([Path(path).name])[Path(path).name]
    for word in STEPS:
        number = numbers.get(word)
        if isinstance(number, float):
            return int(number)
    return None


def _read(path: Path) -> Iterator[tuple[str, str]]:
    """Path and key of each line of a file, nothing if there is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for line in lines:
            told = json.loads(line)
            yield told["path"], told["key"]
    except OSError as error:
        raise SettingsError(f"--jsonl {path}: cannot be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise SettingsError(
            f"--jsonl {path}: holds a line that --watch did not write whole; "
            "remove it, or name another file"
        ) from error


def _append(path: Path, text: str) -> None:
    """Add text to a file, all of it or nothing."""
    try:
        with path.open("ab", buffering=0) as file:
            before, rest = os.fstat(file.fileno()).st_size, text.encode()
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                file.truncate(before)
                raise
    except OSError as error:
        raise SettingsError(f"--jsonl {path}: cannot be written: {error.strerror}") from error
