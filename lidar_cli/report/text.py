"""Numbers and tables as text."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from lidar_cli.errors import printable
from lidar_cli.ranking.order import Row
from lidar_cli.scoring.intervals import Interval

MISSING = "-"


def text_of(value: object) -> str:
    """A value as a person wants to read it: about four significant digits, `-` for None."""
    if value is None:
        return MISSING
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    if value == 0:
        return "0"
    if abs(value) >= 10000 or abs(value) < 0.001:
        return f"{value:.2e}"
    digits = 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3
    return f"{value:.{digits}f}"


def metric_text(name: str, value: float | None) -> str:
    """A metric's value as text; the share of noise is an estimate, which can exceed all of it."""
    if name == "noise_fraction" and value is not None and value > 1:
        return ">= 1: all noise"
    return text_of(value)


def shown(path: str, directory: str) -> str:
    """A path as the table shows it: below the directory that was ranked."""
    return str(Path(path).relative_to(directory)) if Path(path).is_relative_to(directory) else path


def lines(paths: Sequence[str], for_people: bool) -> bytes:
    """Paths, one a line: as they are, or as a terminal may show them."""
    return b"".join(os.fsencode(printable(path) if for_people else path) + b"\n" for path in paths)


class Plain(Console):
    """A console on which names out of files are text alone: no terminal obeys them."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """Rich's segments; its own control codes stand apart from text, and stay."""
        for segment in super().render(renderable, options):
            safe = segment.control or segment.text == "\n" or segment.text.isprintable()
            yield segment if safe else Segment(_lines(segment.text), segment.style)


def _lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def one_line(text: str, style: str = "") -> Text:
    """Text for a console that stays one line, whatever names from files hold."""
    return Text(printable(text), style=style)


def console() -> Console:
    """Stdout: as wide as the terminal, or as wide as needed where there is none."""
    if sys.stdout.isatty():
        return Plain(highlight=False)
    return Plain(highlight=False, width=10_000, color_system=None)


def cell(value: object) -> object:
    """A value for a CSV file: nothing for None, and no text that a spreadsheet would compute.

    Text that begins as a formula does gets an apostrophe before it, as people write it by hand.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def path_cell(path: str) -> str:
    """A path for a CSV file: one that begins as a formula does gets `./` before it."""
    text = printable(path)
    return f"./{text}" if text.startswith(("=", "+", "-", "@")) else text


def print_columns(
    out: Console,
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    fixed: int,
    title: str | None = None,
) -> None:
    """A table whose first `fixed` columns stand again before each block of columns that fits.

    The columns after them hold numbers and are aligned right. On a terminal a long name is broken
    at its last underscore; elsewhere it stays a single word.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    if out.is_terminal:
        headers = ["\n".join(header.rsplit("_", 1)) for header in headers]
    widths = [
        max(len(line) for line in [*header.split("\n"), *(row[at] for row in rows)])
        for at, header in enumerate(headers)
    ]
    shrunk = min(widths[fixed - 1], max(16, out.width // 3))
    taken = sum(widths[: fixed - 1]) + shrunk + 2 * fixed
    at = fixed
    while at < len(headers) or at == fixed:
        stop, used = at, taken
        while stop < len(headers) and (stop == at or used + widths[stop] + 2 <= out.width):
            used += widths[stop] + 2
            stop += 1
        table = Table(
            box=None, padding=(0, 2, 0, 0), pad_edge=False, title=title, title_justify="left"
        )
        for column in [*range(fixed), *range(at, stop)]:
            right = column >= fixed or column < fixed - 1
            table.add_column(
                Text(headers[column]),
                justify="right" if right else "left",
                no_wrap=True,
                max_width=shrunk if column == fixed - 1 else None,
            )
        for row in rows:
            cells = [
                _middle(row[column], shrunk) if column == fixed - 1 else row[column]
                for column in [*range(fixed), *range(at, stop)]
            ]
            table.add_row(*(Text(cell) for cell in cells))
        out.print(table)
        title = None
        if stop >= len(headers):
            return
        out.print()
        at = stop


def _middle(text: str, width: int) -> str:
    """Text shortened in its middle, where paths differ least."""
    if len(text) <= width:
        return text
    head = (width - 3) // 3
    return f"{text[:head]}...{text[len(text) - (width - 3 - head) :]}"


def with_reach(name: str, value: float | None, interval: Interval) -> str:
    """`149.6 +- 2.1`, the reach with the decimals of the value; the value alone without one."""
    text = metric_text(name, value)
    if value is None or interval.ci_high is None or text != text_of(value):
        return text
    reach = interval.ci_high - value
    decimals = len(text.partition(".")[2])
    rounded = f"{reach:.{decimals}f}"
    if "e" in text or (float(rounded) == 0 and reach > 0):
        rounded = f"{reach:.1g}"
    return f"{text} +- {rounded}"


def between(interval: Interval) -> str:
    """`147.5 .. 151.7`, or nothing where there is no interval."""
    if interval.ci_low is None:
        return ""
    return f"{text_of(interval.ci_low)} .. {text_of(interval.ci_high)}"


def tied_ranks(row: Row, rows: Iterable[Row]) -> str:
    """The ranks of the checkpoints that a row ties with, as `rank 2` or `ranks 2-4, 7`."""
    tied = set(row.tied_with)
    ranks = sorted({other.rank for other in rows if other.path in tied})
    if not ranks:
        return ""
    word = "rank" if len(ranks) == 1 else "ranks"
    return f"{word} {', '.join(_runs(ranks))}"


def _runs(numbers: Sequence[int]) -> list[str]:
    """Ascending whole numbers as runs: 2, 3, 4, 7 as `2-4` and `7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
