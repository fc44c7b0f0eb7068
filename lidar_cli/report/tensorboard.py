"""Points for TensorBoard: event files, a run for each folder of checkpoints."""

from __future__ import annotations

import io
import os
import socket
import time
from pathlib import Path
from typing import Any

from lidar_cli.core.metrics import METRICS
from lidar_cli.errors import InputError, MissingExtra
from lidar_cli.ranking.watch import Landed
from lidar_cli.report.jsonl import Lines, append

HELD = "lidar.jsonl"  # beside the runs: which checkpoints the event files hold


class TensorBoardWriter:
    """Event files in a folder, which grow by all points of a checkpoint or by none.

    TensorBoard's own writer has a thread, which prints a trace where the disk is full and leaves
    half an event, behind which no reader goes.

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
        self._held = Lines("--tensorboard", folder / HELD, follow=False)
        self.known = self._held.known
        self._count = len(self.known)

    def add(self, run: str, landed: Landed, step: int | None) -> None:
        """A point for each metric that has a value; without a step, at the count of checkpoints.

        Raises InputError if the disk is full, with nothing half-written.
        """
        event = self._event(step=self._count if step is None else step)
        for name in METRICS:
            value = landed.row.score.value(name)
            if value is not None:
                event.summary.value.add(tag=name, simple_value=value)
        path = self._folder / run / self._name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            before = path.stat().st_size if path.exists() else 0
            first = [] if before else [self._event(file_version="brain.Event:2")]
            append(path, self._records(*first, event), follow=False)
            try:
                self._held.add({"path": landed.row.path, "key": landed.key, "run": run})
            except OSError:
                os.truncate(path, before)  # else it would be written once more
                raise
        except OSError as error:
            raise self._unwritable(error) from error
        self._count += 1

    def _event(self, **told: object) -> Any:
        return self._new_event(wall_time=time.time(), **told)

    def _records(self, *events: Any) -> bytes:
        """Events as they stand in a file, each between its length and checksums."""
        content = io.BytesIO()
        writer = self._new_writer(content)
        for event in events:
            writer.write(event.SerializeToString())
        return content.getvalue()

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(
            f"--tensorboard {self._folder}: cannot be written: {error.strerror}; "
            "free some space, or name another folder; the same command goes on"
        )
