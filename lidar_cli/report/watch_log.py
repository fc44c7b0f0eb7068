"""Scored checkpoints appended to JSON lines and TensorBoard event files.

An entry is written completely or not at all, also on a full disk.
"""

from __future__ import annotations

import io
import json
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from lidar_cli.core.drawdown import Drawdown, drawdown
from lidar_cli.core.metrics import METRICS
from lidar_cli.errors import InputError, MissingExtra, SettingsError
from lidar_cli.ranking.runs import (
    Axis,
    Position,
    position_in_name,
    recorded_positions,
    run_of,
)
from lidar_cli.ranking.watch import ScoredCheckpoint
from lidar_cli.report.ranking import metrics_record, value_record
from lidar_cli.report.text import format_percent, format_value, format_with_interval
from lidar_cli.runtime.files import is_stream, open_stream, parse_json
from lidar_cli.runtime.streams import write_results
from lidar_cli.scoring.compute import COLLAPSED

TAG = "lidar/"  # before the name of a metric in TensorBoard
INDEX = "lidar.jsonl"  # in the folder of event files: the checkpoints that they hold
Records = dict[tuple[str, str], dict[str, Any]]  # by path and key of scored checkpoints


class WatchLog:
    """Writes each checkpoint to the JSON lines (on stdout without a file) and to TensorBoard.

    recorded: entries that every output contains; `add` writes the others only where they lack. The
    running peak is that of the JSON lines, also of earlier processes.
    Raises SettingsError, InputError or MissingExtra for an output that cannot be used.
    """

    def __init__(self, directory: Path, jsonl: Path | None, tensorboard: Path | None) -> None:
        self._directory = directory
        self._jsonl = jsonl
        self._target: Path | BinaryIO | None = None
        self._lines: Records = {}
        if jsonl:
            self._target, self._lines = open_jsonl("--jsonl", jsonl)
        self._board = TensorBoardWriter(tensorboard) if tensorboard else None
        self.recorded = frozenset(self._lines)
        if self._board:
            self.recorded &= self._board.recorded
        self._values: dict[tuple[str, object], list[tuple[int | None, float]]] = {}
        for record in self._lines.values():
            self._remember(record)

    def add(self, scored: ScoredCheckpoint) -> Drawdown:
        """Write one checkpoint to each output that lacks it; its fall from the peak of its run.

        Raises InputError if an output cannot be written; the JSON line is written first.
        """
        row = scored.row
        step = step_of(row.path)
        values = self._values.get((run_of(row.path), scored.settings), [])
        earlier = (value for at, value in values if at is None or step is None or at <= step)
        fall = drawdown(None if scored.is_collapsed else row.value, earlier, scored.by.sort_key)
        record = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "name": scored.name,
            "path": row.path,
            "aliases": list(row.aliases),
            "sha256": scored.sha256,
            "key": scored.key,
            "step": step,
            "by": scored.by.name,
            "direction": scored.by.direction,
            **value_record(row),
            "peak": fall.peak,
            "drawdown": fall.share,
            "collapsed": scored.is_collapsed,
            "settings": scored.settings,
            "metrics": metrics_record(row),
        }
        self._remember(record)
        entry = (row.path, scored.key)
        if self._target is None:
            write_results(json.dumps(record, allow_nan=False))
        elif entry not in self._lines:
            try:
                append_jsonl(self._target, record)
            except OSError as error:
                message = f"--jsonl {self._jsonl}: cannot be written: {error.strerror}"
                raise InputError(message, code="unwritable") from error
        if self._board and entry not in self._board.recorded:
            run = Path(row.path).parent.relative_to(self._directory).as_posix()
            self._board.add(run, scored, step, fall)
        return fall

    def _remember(self, record: dict[str, Any]) -> None:
        """Add the value of a record to those of its run at the same settings.

        That of a constant embedding is left out, so that it is no peak.
        """
        collapsed = record.get("collapsed")
        if collapsed is None and record.get("by") != "normalized_std":  # of an earlier version
            spread = record.get("metrics", {}).get("normalized_std")
            collapsed = spread is not None and spread < COLLAPSED
        if record.get("value") is not None and not collapsed:
            key = (run_of(record["path"]), record.get("settings"))
            self._values.setdefault(key, []).append((record.get("step"), record["value"]))


def alarm_text(scored: ScoredCheckpoint, fall: Drawdown) -> str:
    """The line of --alarm."""
    row, name = scored.row, scored.by.name
    best = f"the best of its run so far is {format_value(fall.peak)}"
    if fall.is_lost and row.value is not None:
        return (
            f"ALARM: the embedding of {scored.name} is constant or nearly so, so that its {name} "
            f"{format_value(row.value)} means nothing; {best}"
        )
    if fall.is_lost:
        return f"ALARM: {scored.name} has no {name}, {best}: {row.reason}"
    value = format_with_interval(name, row.value, row.interval)
    share = format_percent(fall.share)
    return f"ALARM: {scored.name}: {name} {value} is {share} % worse; {best}"


def step_of(path: str) -> int | None:
    """The step of a checkpoint; without any, its epoch, else a number in its name.

    Each as the checkpoint records it, else as its name says. Raises NoProcess.
    """
    recorded = recorded_positions([path]).get(path, Position())
    positions = (recorded, position_in_name(path))
    axes: tuple[Axis, ...] = ("step", "epoch", "number")
    values = (position.on(axis) for axis in axes for position in positions)
    return next((value for value in values if value is not None), None)


class TensorBoardWriter:
    """Event files in a folder, a run per folder of checkpoints.

    All points of a checkpoint are written or none. TensorBoard's own writer is not used: on a full
    disk its thread prints a traceback and leaves half an event, at which readers stop.

    Raises MissingExtra if TensorBoard is not installed, InputError or SettingsError if the folder
    cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError as error:
            raise MissingExtra("tensorboard", "tensorboard", "--tensorboard") from error
        self._new_event, self._new_writer = Event, RecordWriter
        self._folder = folder
        self._name = f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}"
        self._name += f".{os.getpid()}.lidar"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error
        self._index, records = open_jsonl("--tensorboard", folder / INDEX, follow=False)
        self.recorded = frozenset(records)
        self._count = len(self.recorded)

    def add(self, run: str, scored: ScoredCheckpoint, step: int | None, fall: Drawdown) -> None:
        """Write a point per metric with a value, and one of the drawdown.

        Without a step they are at the number of entries so far.

        Raises InputError if the files cannot be written; nothing is then half-written.
        """
        event = self._event(step=self._count if step is None else step)
        values = {name: scored.row.score.value(name) for name in METRICS}
        for name, value in (values | {"drawdown": fall.share}).items():
            if value is not None:
                event.summary.value.add(tag=TAG + name, simple_value=value)
        path = self._folder / run / self._name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            size = path.stat().st_size if path.exists() else 0
            header = [] if size else [self._event(file_version="brain.Event:2")]
            append(path, self._encoded(*header, event), follow=False)
            try:
                entry = {"path": scored.row.path, "key": scored.key, "run": run}
                append_jsonl(self._index, entry, follow=False)
            except OSError:
                os.truncate(path, size)  # else the next run would write it again
                raise
        except OSError as error:
            raise self._unwritable(error) from error
        self._count += 1

    def _event(self, **fields: object) -> Any:
        return self._new_event(wall_time=time.time(), **fields)

    def _encoded(self, *events: Any) -> bytes:
        """Events in the format of event files, which adds lengths and checksums."""
        content = io.BytesIO()
        writer = self._new_writer(content)
        for event in events:
            writer.write(event.SerializeToString())
        return content.getvalue()

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(
            f"--tensorboard {self._folder}: cannot be written: {error.strerror}; "
            "free some space, or name another folder; the same command resumes",
            code="unwritable",
        )


def open_jsonl(option: str, path: Path, follow: bool = True) -> tuple[Path | BinaryIO, Records]:
    """The target for `append_jsonl`, and the records that the file already contains.

    option: the option that named `path`, for messages. path: a file, or a pipe, of which nothing is
    read. follow: whether the file may be a link.
    Raises SettingsError for a file that contains something else or cannot be written.
    """
    stream = is_stream(path)
    try:
        lines = [] if stream or not path.exists() else path.read_text("utf-8").splitlines()
        records = {(record["path"], record["key"]): record for record in map(parse_json, lines)}
    except OSError as error:
        raise SettingsError(f"{option} {path}: cannot be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise SettingsError(
            f"{option} {path}: holds a line that --watch did not write completely; "
            "remove it, or name another file",
            code="foreign-line",
        ) from error
    try:
        if stream:
            return open_stream(path), records  # opened once: its reader ends when it is closed
        append(path, b"", follow)
    except OSError as error:
        raise SettingsError(f"{option} {path}: cannot be written: {error.strerror}") from error
    return path, records


def append_jsonl(target: Path | BinaryIO, record: dict[str, Any], follow: bool = True) -> None:
    """Append a record as one JSON line to a file or an open pipe. Raises OSError."""
    line = f"{json.dumps(record, allow_nan=False)}\n".encode()
    if isinstance(target, Path):
        append(target, line, follow)
    else:
        target.write(line)
        target.flush()


def append(path: Path, content: bytes, follow: bool = True) -> None:
    """Append all of the content to a file, or none of it. The file is created if absent.

    follow: whether `path` may be a link. Raises OSError.
    """
    flags = 0 if follow else getattr(os, "O_NOFOLLOW", 0)
    with open(path, "ab", 0, opener=lambda name, mode: os.open(name, mode | flags, 0o666)) as file:
        size, rest = os.fstat(file.fileno()).st_size, content
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            file.truncate(size)
            raise
