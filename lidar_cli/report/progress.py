"""Progress on stderr: one live line on a terminal, lines with the time of day elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import datetime
from importlib import import_module
from typing import Any, Self

import rich.progress
from rich.progress import TextColumn
from rich.table import Column

from lidar_cli.report.text import SafeConsole, format_duration, format_value, shorten_names
from lidar_cli.runtime.progress import Progress
from lidar_cli.runtime.streams import write_remark

DELAY = 0.5  # seconds before the live line appears, so that short work shows none
LOG_EVERY = 60.0  # seconds between two lines within one long task, without a terminal
INDENT = " " * 8
LONGEST_NAME = 40  # characters, on a terminal


class Pace:
    """How far the work has come, and the time left by the pace so far.

    Checkpoints that other processes embed count for the pace too.
    """

    def __init__(self) -> None:
        self.names: Sequence[str] = ()
        self.by = self.name = self.task = ""
        self.count = 0  # checkpoints that are finished or failed
        self.done = self.total = 0  # steps of the task
        self._to_embed = self._passed = 0
        self._began = self._started = self._task_began = time.monotonic()
        self._per_checkpoint: float | None = None
        self._first = 0  # steps of the task that were complete when it began

    def begin(self, names: Sequence[str], to_embed: int, by: str) -> None:
        """Start on these checkpoints."""
        self.names, self.by, self.count = names, by, 0
        self._to_embed, self._passed, self._per_checkpoint = to_embed, 0, None
        self._began = time.monotonic()
        self.leave()

    def start(self, name: str) -> None:
        """Start on one checkpoint."""
        self.leave()
        self.name, self._started = name, time.monotonic()

    def leave(self) -> None:
        """End the work on a checkpoint."""
        self.name = self.task = ""

    def complete_one(self) -> None:
        """Count a checkpoint; after the last, other tasks have no checkpoint."""
        self.count += 1
        if self.count >= len(self.names):
            self.names = ()

    def step(self, task: str, done: int, total: int) -> None:
        """`done` of `total` steps of a task are complete."""
        if task != self.task:
            self.task, self._first, self._task_began = task, done, time.monotonic()
        self.done, self.total = done, total

    def passed(self) -> None:
        """One checkpoint less is to be embedded."""
        self._to_embed = max(0, self._to_embed - 1)
        self._passed += 1
        self._per_checkpoint = (time.monotonic() - self._began) / self._passed

    @property
    def seconds(self) -> float:
        """Time since the start on this checkpoint, or on this task without one."""
        return time.monotonic() - (self._started if self.name else self._task_began)

    @property
    def left(self) -> float | None:
        """Seconds until all is complete; None while nothing has been measured."""
        per_step = None
        if self.task and self.done > self._first:
            per_step = (time.monotonic() - self._task_began) / (self.done - self._first)
        if not self.names:
            return None if per_step is None else per_step * (self.total - self.done)
        per_checkpoint = self._per_checkpoint
        if not self.name:
            return None if per_checkpoint is None else per_checkpoint * self._to_embed
        if self.task == "embedding" and per_step is not None:
            this = per_step * (self.total - self.done)
            per_checkpoint = per_checkpoint or per_step * self.total
        elif per_checkpoint is not None:
            this = max(0.0, per_checkpoint - self.seconds)
        else:
            return None
        return this + per_checkpoint * max(0, self._to_embed - 1)

    @property
    def position(self) -> str:
        """`[ 3/12] ` for the third of twelve checkpoints; empty for a single one."""
        total = len(self.names)
        at = min(self.count + 1, total)
        return f"[{at:>{len(str(total))}}/{total}] " if total > 1 else ""


class Terminal(Progress):
    """Shows progress and notes on stderr: a live line on a terminal, else a line a checkpoint.

    A context manager; leaving it removes the live line. Results may be printed between two
    checkpoints, because the live line is there only while one is in progress.
    enabled: whether it shows anything: True in one of several processes on the same terminal.
    quiet: shows no line of a checkpoint, and notes alone without a terminal.
    """

    def __init__(self, enabled: bool = True, quiet: bool = False) -> None:
        self._enabled = enabled
        self._quiet = quiet
        self._console = SafeConsole(stderr=True, highlight=False)
        self._is_live = sys.stderr.isatty() and not self._console.is_dumb_terminal
        self._line = rich.progress.Progress(
            TextColumn(
                "{task.description}",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis"),
            ),
            console=self._console,
            transient=True,
            redirect_stdout=False,
        )
        self._bar = self._line.add_task("", total=None)
        self._pace = Pace()
        self._short: dict[str, str] = {}  # names as in the lines of finished checkpoints
        self._start = self._last_line = time.monotonic()
        self._shown = False
        self._notes: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._hide()

    def begin(self, names: Sequence[str], to_embed: int, by: str = "") -> None:
        """Count these checkpoints from here on."""
        self._hide()
        self._pace.begin(names, to_embed, by)
        self._short = dict(zip(names, shorten_names(names, LONGEST_NAME), strict=True))
        self._last_line = time.monotonic()

    def checkpoint(self, name: str) -> None:
        """Name the checkpoint in the lines that follow."""
        self._pace.start(name)
        self._last_line = time.monotonic()

    def finished(self, name: str, value: float | None, seconds: float, cached: bool) -> None:
        """Print the value and the time that it took."""
        if not cached:
            self._pace.passed()
        took = "from the cache" if cached else format_duration(seconds)
        self._print_finished(name, value, took)

    def failed(self, name: str) -> None:
        """Print that there is no value."""
        self._pace.passed()
        self._print_finished(name, None, "failed")

    def embedded_elsewhere(self) -> None:
        """Count the checkpoint for the time left."""
        self._pace.passed()

    def update(self, task: str, done: int, total: int) -> None:
        """Move the live line; without a terminal, print a line once a minute."""
        self._pace.step(task, done, total)
        if not self._enabled:
            return
        if self._is_live:
            self._show()
        elif not self._quiet and time.monotonic() - self._last_line >= LOG_EVERY:
            name = f"{self._pace.name} " if self._pace.name else ""
            self._log(f"{name}{task} {done}/{total} ({format_duration(self._pace.seconds)})")

    def note(self, text: str) -> None:
        """Print one line, once."""
        if not self._enabled or text in self._notes:
            return
        self._notes.add(text)
        if self._console.is_terminal:
            self._console.print(text, markup=False)
        else:
            write_remark(text)

    def _show(self) -> None:
        if not self._shown and time.monotonic() - self._start < DELAY:
            return
        pace, left = self._pace, self._pace.left
        parts = [f"{pace.task} {pace.done}/{pace.total}"]
        parts += [format_duration(pace.seconds)] if pace.name else []
        parts += [f"{format_duration(left)} left"] if left is not None else []
        work, name = "   ".join(parts), ""
        if pace.name:
            room = self._console.width - len(f"{pace.position}  {work}") - 1
            name = f"{shorten_names([pace.name], min(LONGEST_NAME, room))[0]}  "
        self._draw(f"{pace.position}{name}{work}")

    def _draw(self, description: str) -> None:
        self._line.update(self._bar, description=description)
        if not self._shown:
            self._line.start()
            self._shown = True

    def _hide(self) -> None:
        if self._shown:
            self._line.stop()
            self._shown = False

    def _print_finished(self, name: str, value: float | None, took: str) -> None:
        pace = self._pace
        self._hide()
        pace.leave()
        if self._enabled and not self._quiet:
            if self._is_live:
                short, shown = self._short.get(name, name), format_value(value)
                width = max(map(len, self._short.values()), default=0)
                self._console.print_line(f"{INDENT}{short:<{width}}  {shown:>8}   {took}")
            else:
                shown = "" if value is None else f" {pace.by} {format_value(value)}"
                self._log(f"{name}{shown} ({took})")
        pace.complete_one()

    def _log(self, text: str) -> None:
        left = self._pace.left
        more = f", about {format_duration(left)} left" if left else ""
        now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S")
        write_remark(f"{now}  {self._pace.position}{text}{more}")
        self._last_line = time.monotonic()


class Collected(Terminal):
    """Collects notes, and shows nothing but a live line in a notebook. A context manager."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.notes: list[str] = []
        self._is_live = in_notebook()
        self._handle: Any = None

    def note(self, text: str) -> None:
        """Collect one line, once."""
        if text not in self.notes:
            self.notes.append(text)

    def _draw(self, description: str) -> None:
        content = {"text/plain": description}
        if self._handle is None:
            show = import_module("IPython.display").display
            self._handle = show(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)
        self._shown = True

    def _hide(self) -> None:
        if self._shown:
            self._handle.update({"text/plain": ""}, raw=True)
            self._shown = False


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return type(shell).__name__ == "ZMQInteractiveShell"
