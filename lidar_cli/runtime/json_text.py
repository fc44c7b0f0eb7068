"""JSON that somebody else may have written."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


def parse_json(text: str | bytes, constant: Callable[[str], Any] | None = None) -> Any:
    """The value of a JSON text. Raises ValueError, also for nesting deeper than Python can read.

    constant: makes the value of NaN, Infinity and -Infinity; None for floats.
    """
    try:
        return json.loads(text, parse_constant=constant)
    except RecursionError as error:
        raise ValueError("JSON that is nested too deep") from error
