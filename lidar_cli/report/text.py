"""Numbers and tables as text. Control characters in names from files are escaped."""

from __future__ import annotations

import csv
import io
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, TypeVar

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from lidar_cli.errors import printable
from lidar_cli.ranking.group_metrics import GROUP_METRICS

if TYPE_CHECKING:  # a progress line needs none of their modules
    from lidar_cli.ranking.order import Row
    from lidar_cli.scoring.intervals import Interval

MISSING = "-"
CAUTIONS = 2  # that are printed without --verbose
INDENT = 9  # columns of the label of a caution
FORMULA = ("=", "+", "-", "@")  # first characters of a cell that a spreadsheet takes for a formula
T = TypeVar("T")


# Numbers


def format_value(value: object) -> str:
    """A value with about four significant digits, `-` for None."""
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


def format_metric(name: str, value: float | None) -> str:
    """The value of a metric; a noise fraction is an estimate and can exceed 1."""
    if name == "noise_fraction" and value is not None and value > 1:
        return ">= 1"
    if name == "agreement" and value is not None:
        return f"{value:.1f}"
    return format_value(value)


def format_with_interval(name: str, value: float | None, interval: Interval) -> str:
    """`149.6 +- 2.1`, both with the same decimals; the value alone without an interval.

    `2.5 (1.0 .. 4.0)` of a metric of a group, whose interval has the value at no fixed place.
    """
    text = format_metric(name, value)
    if name in GROUP_METRICS and value is not None and interval.ci_high is not None:
        low, high = (format_metric(name, end) for end in (interval.ci_low, interval.ci_high))
        return f"{text} ({low} .. {high})"
    if value is None or interval.ci_high is None or text != format_value(value):
        return text
    half_width = interval.ci_high - value
    decimals = len(text.partition(".")[2])
    rounded = f"{half_width:.{decimals}f}"
    if "e" in text or (float(rounded) == 0 and half_width > 0):
        rounded = f"{half_width:.1g}"
    return f"{text} +- {rounded}"


def format_interval(interval: Interval) -> str:
    """`147.5 .. 151.7`, empty without an interval."""
    if interval.ci_low is None:
        return ""
    return f"{format_value(interval.ci_low)} .. {format_value(interval.ci_high)}"


def format_percent(share: float | None) -> str:
    """A share of 1 as percent with one decimal."""
    return MISSING if share is None else f"{100 * share:.1f}"


def format_signed(value: float | None) -> str:
    """A correlation with its sign and two decimals."""
    return MISSING if value is None else f"{value:+.2f}"


def format_duration(seconds: float) -> str:
    """`0.4 s`, `41 s`, `6 min`, `2 h 5 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def format_ties(row: Row, rows: Iterable[Row]) -> str:
    """The ranks of the checkpoints that are tied with a row, as `rank 2` or `ranks 2-4, 7`."""
    ranks = tied_ranks(row, rows)
    return f"{'ranks' if set(ranks) & set(',-') else 'rank'} {ranks}" if ranks else ""


def tied_ranks(row: Row, rows: Iterable[Row]) -> str:
    """The ranks of the checkpoints that are tied with a row, as `2` or `2-4, 7`."""
    tied = set(row.tied_with)
    ranks = sorted({other.rank for other in rows if other.path in tied})
    runs: list[list[int]] = []  # of consecutive ranks
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


# Names and remarks


def path_lines(paths: Sequence[str]) -> bytes:
    """Paths, one per line: their exact bytes, but escaped if stdout is a terminal."""
    texts = map(printable, paths) if sys.stdout.isatty() else paths
    return b"".join(os.fsencode(text) + b"\n" for text in texts)


def counted(count: int, noun: str) -> str:
    """`1 checkpoint`, `2 checkpoints`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def joined_by_and(texts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


def first_and_more(names: Sequence[str]) -> str:
    """`a`, or `a and 2 more`."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def by_remark(pairs: Iterable[tuple[str | None, T]]) -> dict[str, list[T]]:
    """Remark -> the subjects that it applies to, so that it is printed once; None is left out."""
    groups: dict[str, list[T]] = {}
    for remark, subject in pairs:
        if remark is not None:
            groups.setdefault(remark, []).append(subject)
    return groups


# Tables


def csv_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """CSV text; None is an empty cell."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(headers)
    writer.writerows(map(_csv_cell, row) for row in rows)
    return out.getvalue()


def _csv_cell(value: object) -> object:
    """The value; text that a spreadsheet would take for a formula gets an apostrophe in front."""
    if not isinstance(value, str):
        return "" if value is None else value
    text = printable(value)
    return f"'{text}" if text.startswith(FORMULA) else text


def csv_path(path: str) -> str:
    """A path for a CSV file; one that a spreadsheet would take for a formula gets `./` in front."""
    text = printable(path)
    return f"./{text}" if text.startswith(FORMULA) else text


def markdown_table(
    headers: Sequence[str], rows: Iterable[Sequence[str]], left: Collection[int]
) -> str:
    """A Markdown table. left: positions of the columns aligned left; others are aligned right."""
    rule = [":---" if at in left else "---:" for at in range(len(headers))]
    lines = (
        [printable(cell).replace("|", "\\|") for cell in row] for row in (headers, rule, *rows)
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def print_columns(
    out: Console, headers: Sequence[str], rows: Sequence[Sequence[str]], fixed: int
) -> None:
    """Print a table; if too wide, it is split into blocks that each repeat its first columns.

    fixed: how many first columns are repeated. The last of them contains names; the columns after
    it contain numbers, aligned right. On a terminal, headers are broken at their last underscore.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    if out.is_terminal:
        headers = [broken_header(header) for header in headers]
    widths = column_widths(headers, rows)
    room = out.width - sum(widths) - 2 * (len(widths) - 1) + widths[fixed - 1]
    narrow = max(16, out.width // 3)
    shown = shorten_names([row[fixed - 1] for row in rows], room if room >= narrow else narrow)
    name_width = max(map(len, [*headers[fixed - 1].split("\n"), *shown]))
    fixed_width = sum(widths[: fixed - 1]) + name_width + 2 * (fixed - 1)
    at = fixed
    while at < len(headers) or at == fixed:
        stop, used = at, fixed_width
        while stop < len(headers) and (stop == at or used + widths[stop] + 2 <= out.width):
            used += widths[stop] + 2
            stop += 1
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        for column in [*range(fixed), *range(at, stop)]:
            justify: Literal["left", "right"] = "left" if column == fixed - 1 else "right"
            table.add_column(Text(headers[column]), justify=justify, no_wrap=True)
        for row, name in zip(rows, shown, strict=True):
            table.add_row(*map(Text, [*row[: fixed - 1], name, *row[at:stop]]))
        out.print(table)
        if stop >= len(headers):
            return
        out.print()
        at = stop


def broken_header(header: str) -> str:
    """A header in two lines, broken at its last underscore or space if it has only one."""
    if "\n" in header:
        return header
    return "\n".join(re.split(r"[_ ](?=[^_ ]*$)", header, maxsplit=1))


def column_widths(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """The width of each column; a header may have several lines."""
    return [
        max(len(line) for line in [*header.split("\n"), *(row[at] for row in rows)])
        for at, header in enumerate(headers)
    ]


def shorten_names(names: Sequence[str], width: int) -> list[str]:
    """Names shortened in their middle to a width; to a larger one if two would be alike."""
    distinct = len(set(names))
    for room in range(max(width, 5), max(map(len, names), default=0)):
        for head in ((room - 3) // 3, (room - 3) // 2, room - 3, 0):
            shown = [_middle(name, room, head) for name in names]
            if len(set(shown)) == distinct:
                return shown
    return list(names)


def _middle(text: str, width: int, head: int) -> str:
    """Text shortened after its first `head` characters."""
    if len(text) <= width:
        return text
    return f"{text[:head]}...{text[len(text) - (width - 3 - head) :]}"


# Terminals


class SafeConsole(Console):
    """A console that escapes control characters, which names from files may contain."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """Rich's segments, escaped; Rich's own control codes are separate segments and stay."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text == "\n" or segment.text.isprintable():
                yield segment
            else:
                escaped = "\n".join(map(printable, segment.text.split("\n")))
                yield Segment(escaped, segment.style)

    def print_line(self, text: str, style: str = "") -> None:
        """Print text as one line, whatever characters it holds."""
        self.print(Text(printable(text), style=style))


def console() -> SafeConsole:
    """A console on stdout, as wide as the terminal, or as needed if stdout is not a terminal."""
    if sys.stdout.isatty():
        return SafeConsole(highlight=False)
    return SafeConsole(highlight=False, width=10_000, color_system=None)


def error_console() -> SafeConsole:
    """A console on stderr, of the same kind as `console`."""
    if sys.stderr.isatty():
        return SafeConsole(highlight=False, stderr=True)
    return SafeConsole(highlight=False, stderr=True, width=10_000, color_system=None)


def print_wrapped(out: SafeConsole, text: str, style: str = "") -> None:
    """Print text in lines of at most the width of the console, which break between words."""
    for line in wrapped(printable(text), out.width):
        out.print(Text(line, style=style), soft_wrap=True)


def print_labelled(out: SafeConsole, label: str, lines: Sequence[str], style: str = "") -> None:
    """Print lines below each other after a label; one line without a terminal.

    They are not broken further, so that commands can be copied.
    """
    if not out.is_terminal:
        out.print(Text(printable(f"{label}: {' '.join(lines)}")), soft_wrap=True)
        return
    for at, line in enumerate(lines):
        start = Text(f"{'' if at else label:{INDENT}}", style=style)
        out.print(start + Text(printable(line)), soft_wrap=True)


def command_lines(command: str, width: int) -> list[str]:
    """A command in lines that fit, if its words do; a shell reads them as one line."""
    if len(command) <= width or os.name == "nt":  # whose shells have another sign
        return [command]
    lines: list[str] = []
    for word in map(shlex.quote, shlex.split(command)):
        if lines and len(lines[-1]) + len(word) + 3 <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return [*(f"{line} \\" for line in lines[:-1]), lines[-1]]


def wrapped(text: str, width: int) -> list[str]:
    """The lines of a text; a word that is longer than a line stays whole."""
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
