"""Stderr: progress bars and remarks. Nothing moves and nothing is coloured off a terminal."""

from __future__ import annotations

import time

import rich.progress
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from lidar_cli.report.text import Plain
from lidar_cli.runtime.progress import Progress
from lidar_cli.runtime.streams import write_remark

PATIENCE = 0.5  # seconds before a bar appears: short work needs none


class Terminal(Progress):
    """Shows progress and remarks on stderr. A context manager; leaving it removes the bar.

    enabled: whether it shows anything; of several processes on one terminal, one does.
    """

    def __init__(self, enabled: bool = True) -> None:
        self._enabled = enabled
        self._console = Plain(stderr=True, highlight=False)
        self._bars = rich.progress.Progress(
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
            self._bars.stop()

    def update(self, task: str, done: int, total: int) -> None:
        """Move the bar of `task`; a new task replaces the last one's bar."""
        if not self._enabled or not self._console.is_terminal:
            return
        if not self._shown and time.monotonic() - self._begun > PATIENCE:
            self._bars.start()
            self._shown = True
        if task != self._task:
            for old in self._bars.task_ids:
                self._bars.remove_task(old)
            self._bars.add_task(task, total=total)
            self._task = task
        self._bars.update(self._bars.task_ids[0], completed=done, total=total)

    def note(self, text: str) -> None:
        """Print one line, once."""
        if not self._enabled or text in self._said:
            return
        self._said.add(text)
        if self._console.is_terminal:
            self._console.print(text, markup=False)
        else:
            write_remark(text)
