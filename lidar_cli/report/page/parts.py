"""Parts that both pages have: lists of remarks, tables of text, and where the numbers come from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lidar_cli.report.page.charts import charts
from lidar_cli.report.page.markup import Markup, broken, element, joined
from lidar_cli.report.page.table import BREAKS, Entry, Listing, framed

SHORT = 24  # characters of the longest cell that is aligned as a number


def section(
    heading: Sequence[str], table: Markup, warnings: Markup, listing: Listing, *more: str
) -> Markup:
    """Comparable entries: what they share, table, warnings, charts, and what else is said.

    heading: a title, which may be empty, and the constants that the values depend on.
    """
    title = [element("h2", None, heading[0])] if heading[0] else []
    constants = element("p", {"class": "constants"}, *_spaced(heading[1:]))
    drawn = element("div", {"class": "charts"}, *charts(listing))
    first = (*title, constants, table, warnings)
    return element("section", {"class": "listing"}, *first, drawn, *more)


def said(lines: Iterable[str], kind: str, title: str = "") -> Markup:
    """A list of lines under a title, nothing where there are none."""
    items = [element("li", None, broken(line, "/")) for line in lines]
    if not items:
        return Markup()
    head = element("h3", None, title) if title else ""
    return element("div", {"class": kind}, head, element("ul", None, *items))


def folded(title: str, *content: str) -> Markup:
    """Content that a reader opens, nothing where there is none."""
    if not any(content):
        return Markup()
    return element("details", None, element("summary", None, title), *content)


def text_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """A plain table whose first column names the line; columns of numbers are aligned right."""
    left = [not all(map(_is_number, column)) for column in zip(*rows, strict=True)]
    head = [
        element("th", {"scope": "col", "class": "left" if left[at] else None}, broken(header, "_"))
        for at, header in enumerate(headers)
    ]
    body = [
        element(
            "tr",
            None,
            element("th", {"scope": "row"}, broken(row[0], BREAKS)),
            *(
                element("td", {"class": "left" if left[at] else None}, broken(cell, "/"))
                for at, cell in enumerate(row[1:], 1)
            ),
        )
        for row in rows
    ]
    whole = element(
        "table",
        {"class": "text"},
        element("thead", None, element("tr", None, *head)),
        element("tbody", None, *body),
    )
    return framed(whole)


def _is_number(text: str) -> bool:
    return len(text) < SHORT and not text.strip("+-.e0123456789 ")


def provenance(entries: Sequence[Entry]) -> Markup:
    """What all entries have in common, then a table of what differs."""
    every = [entry.score.provenance for entry in entries]
    names = list(dict.fromkeys(k for told in every for k, v in told.items() if v is not None))
    shared = [name for name in names if len({repr(told.get(name)) for told in every}) == 1]
    content = [_definitions({name: every[0][name] for name in shared})] if shared else []
    if apart := [name for name in names if name not in shared]:
        rows = [
            [entry.name, *(_plain(told.get(name)) for name in apart)]
            for entry, told in zip(entries, every, strict=True)
        ]
        content.append(text_table(["", *apart], rows))
    return folded("Provenance", *content)


def _definitions(values: Mapping[str, Any]) -> Markup:
    pairs = [
        joined(element("dt", None, broken(name, "_")), element("dd", None, _plain(value)))
        for name, value in values.items()
    ]
    return element("dl", None, *pairs)


def _plain(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _spaced(parts: Iterable[str]) -> list[str]:
    return [piece for part in parts for piece in (element("span", None, part), " ")]
