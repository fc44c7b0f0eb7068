"""Prints Markdown on a terminal: plain headings, indented equations, tables without a frame."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import ClassVar

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Heading, Markdown, MarkdownElement, TableElement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from rich.theme import Theme

WIDEST = 100  # columns of a line of prose
WORD, PIECE = re.compile(r"\S+"), re.compile(r"[^\s/-]+[/-]*|[/-]+")


class _Heading(Heading):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        name, colon, title = self.text.plain.partition(": ")
        text = Text.assemble((name, "bold"), "    " if colon else "", title)
        yield text if self.tag == "h1" else Text(self.text.plain, "bold")


class _Code(CodeBlock):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Padding(Text(str(self.text).rstrip(), no_wrap=True, overflow="fold"), (0, 0, 0, 4))


class _Table(TableElement):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for part in super().__rich_console__(console, options):
            if isinstance(part, Table):
                part.box, part.padding, part.header_style = box.SIMPLE_HEAD, (0, 1, 0, 0), "bold"
                part.show_edge = part.pad_edge = False
                _keep_words(part, options.max_width)
            yield part


def _keep_words(table: Table, width: int) -> None:
    """Set the widths of columns: first for their longest word, then for the fewest lines.

    Where these words do not fit, those after the first column are broken after `/` and `-`.
    """
    columns = [[str(column.header), *map(str, column.cells)] for column in table.columns]
    longest = [max(map(len, cells)) for cells in columns]
    widths = [_longest(WORD, cells) for cells in columns]
    room = width - 2 * len(columns) + 1
    if sum(widths) > room:
        widths[1:] = [_longest(PIECE, cells) for cells in columns[1:]]
    free = room - sum(widths)
    for _ in range(-free):
        widths[1 + widths[1:].index(max(widths[1:]))] -= 1  # the first column holds names
    for _ in range(free):
        lines = [most / at if at < most else 0 for most, at in zip(longest, widths, strict=True)]
        if any(lines):
            widths[lines.index(max(lines))] += 1
    for column, chosen in zip(table.columns, widths, strict=True):
        column.width, column.overflow = chosen, "fold"
        column._cells = [_broken(cell, chosen) for cell in column.cells if isinstance(cell, Text)]


def _longest(pattern: re.Pattern[str], cells: Iterable[str]) -> int:
    return max(len(match) for cell in cells for match in pattern.findall(cell))


def _broken(text: Text, width: int) -> Text:
    """A text whose words that are longer than the width have line ends between their pieces."""
    ends: list[int] = []
    for word in WORD.finditer(text.plain):
        begin = word.start()
        for piece in PIECE.finditer(text.plain, *word.span()):
            if piece.end() - begin > width and piece.start() > begin:
                begin = piece.start()
                ends.append(begin)
    return Text("\n").join(text.divide(ends))


class _Plain(Markdown):
    elements: ClassVar[dict[str, type[MarkdownElement]]] = Markdown.elements | {
        "heading_open": _Heading,
        "code_block": _Code,
        "fence": _Code,
        "table_open": _Table,
    }


def print_markdown(text: str) -> None:
    """Print a text of our own on stdout, as wide as the terminal, up to WIDEST columns."""
    out = Console(highlight=False, theme=Theme({"markdown.code": "cyan"}))
    out.print(_Plain(text, hyperlinks=False), width=min(out.width, WIDEST))
