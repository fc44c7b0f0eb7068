"""Errors by class and code: the words of a message belong to the one test about them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lidar_cli.errors import LidarError


@contextmanager
def raises(kind: type[LidarError], code: str) -> Iterator[pytest.ExceptionInfo[LidarError]]:
    """The block raises this class, with this code, and a message of one line."""
    with pytest.raises(kind) as raised:
        yield raised
    assert raised.value.code == code
    assert str(raised.value).isprintable()
