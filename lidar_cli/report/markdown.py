"""Prints Markdown on a terminal: plain headings, indented equations, tables without a frame."""

from __future__ import annotations

from typing import ClassVar

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Heading, Markdown, MarkdownElement, TableElement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from rich.theme import Theme

WIDEST = 100  # columns of a line of prose


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
    """Set the widths of columns: first for their longest word, then for the fewest lines."""
    columns = [[str(column.header), *map(str, column.cells)] for column in table.columns]
    longest = [max(map(len, cells)) for cells in columns]
    widths = [max(len(word) for cell in cells for word in cell.split()) for cells in columns]
    free = width - 2 * len(columns) + 1 - sum(widths)
    for _ in range(-free):
        widths[1 + widths[1:].index(max(widths[1:]))] -= 1  # the first column holds names
    for _ in range(free):
        lines = [most / at if at < most else 0 for most, at in zip(longest, widths, strict=True)]
        if any(lines):
            widths[lines.index(max(lines))] += 1
    for column, chosen in zip(table.columns, widths, strict=True):
        column.width, column.overflow = chosen, "fold"


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
