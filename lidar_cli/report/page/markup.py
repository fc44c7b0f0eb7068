"""HTML as values: text is escaped by being text, and only what is built here is not."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from typing import Any

VOID = ("input", "wbr")  # elements that hold nothing and are not closed


SURROGATES = re.compile("[\ud800-\udfff]")  # of names that are not UTF-8


class Markup(str):
    """HTML that needs no escaping."""

    __slots__ = ()


def element(name: str, attributes: Mapping[str, object] | None = None, *children: str) -> Markup:
    """An element; children and the values of attributes are escaped unless they are Markup.

    An attribute of None or False is left out, one of True stands by its name alone.
    """
    given = (attributes or {}).items()
    told = "".join(
        f" {key}" if value is True else f' {key}="{_escaped(str(value))}"'
        for key, value in given
        if value is not None and value is not False
    )
    if name in VOID:
        return Markup(f"<{name}{told}>")
    return Markup(f"<{name}{told}>{joined(*children)}</{name}>")


def joined(*parts: str) -> Markup:
    """Parts one after the other, those that are text escaped."""
    return Markup("".join(part if isinstance(part, Markup) else _escaped(part) for part in parts))


def _escaped(text: str) -> str:
    """Text that HTML can hold in UTF-8: bytes of names that are not UTF-8 as escapes."""
    return SURROGATES.sub(lambda found: f"\\u{ord(found[0]):04x}", html.escape(text, quote=True))


def broken(text: str, after: str) -> Markup:
    """Text that a browser may break after each of some characters."""
    pieces, start = [], 0
    for at, character in enumerate(text, 1):
        if character in after:
            pieces += [text[start:at], element("wbr")]
            start = at
    return joined(*pieces, text[start:])


def script_data(value: Any) -> Markup:
    """A value as JSON that can stand in a script element: it can neither end it nor open another.

    Raises ValueError for NaN and infinities, which are no JSON.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
