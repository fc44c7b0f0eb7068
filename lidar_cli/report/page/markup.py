"""HTML as values: text is escaped unless it is Markup, which only this module creates."""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

VOID = ("input", "wbr")  # elements without content, which are not closed
SURROGATES = re.compile("[\ud800-\udfff]")  # of names that are not UTF-8
BREAKS = "/_="  # characters of a path after which its line may break
LONGEST_NUMBER = 24  # characters; a longer cell is not aligned as a number


class Markup(str):
    """HTML that needs no escaping."""

    __slots__ = ()


def element(name: str, attributes: Mapping[str, object] | None = None, *children: str) -> Markup:
    """An element; children and the values of attributes are escaped unless they are Markup.

    An attribute of None or False is left out, one of True is written without a value.
    """
    text = "".join(
        f" {key}" if value is True else f' {key}="{_escaped(str(value))}"'
        for key, value in (attributes or {}).items()
        if value is not None and value is not False
    )
    if name in VOID:
        return Markup(f"<{name}{text}>")
    return Markup(f"<{name}{text}>{joined(*children)}</{name}>")


def joined(*parts: str) -> Markup:
    """Parts in sequence; text is escaped."""
    return Markup("".join(part if isinstance(part, Markup) else _escaped(part) for part in parts))


def _escaped(text: str) -> str:
    """Text escaped for HTML in UTF-8; bytes of names that are not UTF-8 become \\u escapes."""
    return SURROGATES.sub(lambda match: f"\\u{ord(match[0]):04x}", html.escape(text, quote=True))


def broken(text: str, after: str) -> Markup:
    """Text that a browser may break after each of some characters."""
    pieces, start = [], 0
    for at, character in enumerate(text, 1):
        if character in after:
            pieces += [text[start:at], element("wbr")]
            start = at
    return joined(*pieces, text[start:])


def bullet_list(lines: Iterable[str], kind: str, title: str = "") -> Markup:
    """A list of lines under a title; empty without lines. kind: its CSS class."""
    items = [element("li", None, broken(line, "/")) for line in lines]
    if not items:
        return Markup()
    head = element("h3", None, title) if title else ""
    return element("div", {"class": kind}, head, element("ul", None, *items))


def folded(title: str, *content: str) -> Markup:
    """Content that a click unfolds; empty without content."""
    if not any(content):
        return Markup()
    return element("details", None, element("summary", None, title), *content)


def text_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    best: Collection[tuple[int, int]] = (),
) -> Markup:
    """A plain table whose first column names the row; columns of numbers are aligned right.

    best: row and column of the cells that are marked.
    """
    classes = [
        None if all(map(_is_number, column)) else "left" for column in zip(*rows, strict=True)
    ]
    head = [
        element("th", {"scope": "col", "class": kind}, broken(header, "_"))
        for header, kind in zip(headers, classes, strict=True)
    ]
    body = []
    for at, (name, *cells) in enumerate(rows):
        kinds = [
            "best" if (at, column) in best else kind for column, kind in enumerate(classes[1:], 1)
        ]
        columns = (
            element("td", {"class": kind}, broken(cell, "/"))
            for cell, kind in zip(cells, kinds, strict=True)
        )
        row_head = element("th", {"scope": "row"}, broken(name, BREAKS))
        body.append(element("tr", None, row_head, *columns))
    return framed(head, body, kind="text")


def _is_number(text: str) -> bool:
    return len(text) < LONGEST_NUMBER and not text.strip("+-.e0123456789 ")


def framed(
    head: Iterable[Markup], rows: Iterable[Markup], kind: str | None = None, long: bool = False
) -> Markup:
    """A table in a frame that scrolls if the table is too wide, or too long with `long`.

    head: the header cells. kind: the CSS class of the table.
    """
    table = element(
        "table",
        {"class": kind},
        element("thead", None, element("tr", None, *head)),
        element("tbody", None, *rows),
    )
    attributes = {"class": "frame long" if long else "frame", "tabindex": 0, "role": "region"}
    return element("div", attributes | {"aria-label": "Table"}, table)
