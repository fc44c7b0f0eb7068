"""Stderr: progress bars and remarks. Nothing moves and nothing is coloured off a terminal."""

from __future__ import annotations

import time

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lidar_cli.report.text import Plain
from lidar_cli.runtime.progress import Watcher
from lidar_cli.runtime.streams import write_remark

PATIENCE = 0.5  # seconds before a bar appears: short work needs none


class Terminal(Watcher):
    """A watcher that shows what it is told. A context manager; leaving it removes the bar.

    speaks: whether it does; of several processes that share a terminal one is enough.
    """

    def __init__(self, speaks: bool = True) -> None:
        self._speaks = speaks
        self._console = Plain(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            expand=True,
        )
        self._begun = time.monotonic()
        self._task: str | None = None
        self._shown = False
        self._said: set[str] = set()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._progress.stop()

    def progress(self, task: str, done: int, total: int) -> None:
        """Move the bar of `task`; a new task replaces the last one's bar."""
        if not self._speaks or not self._console.is_terminal:
            return
        if not self._shown and time.monotonic() - self._begun > PATIENCE:
            self._progress.start()
            self._shown = True
        if task != self._task:
            for old in self._progress.task_ids:
                self._progress.remove_task(old)
            self._progress.add_task(task, total=total)
            self._task = task
        self._progress.update(self._progress.task_ids[0], completed=done, total=total)

    def note(self, text: str) -> None:
        """Print one line, once."""
        if not self._speaks or text in self._said:
            return
        self._said.add(text)
        if self._console.is_terminal:
            self._console.print(text, markup=False)
        else:
            write_remark(text)
