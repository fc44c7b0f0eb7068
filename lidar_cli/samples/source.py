"""What the readers of data have in common: images in the order of the seed, none read yet."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lidar_cli.runtime.files import open_regular
from lidar_cli.samples.pixels import Content


@dataclass(frozen=True)
class Candidate:
    """An image that may become a sample; label: class number, -1 unknown.

    read: the content. Safe to call from several threads.
    """

    id: str
    label: int
    read: Callable[[], Content]


@dataclass(frozen=True)
class Source:
    """All images of some data, shuffled by the seed, listed as far as they are asked for.

    total: how many there are, None for a stream. image_size: the side that all images have by
    construction, or None. remarks: lines that the user should read.
    """

    data: str
    candidates: Iterable[Candidate]
    total: int | None
    image_size: int | None = None
    remarks: Sequence[str] = ()


def shuffled(total: int, seed: int) -> list[int]:
    """The indices below `total` in the order of the seed."""
    # RandomState's stream is frozen for good, unlike that of numpy's newer generators.
    order: list[int] = np.random.RandomState(seed % 2**32).permutation(total).tolist()
    return order


def as_text(name: str) -> str:
    """A name as text that can be stored, also where its bytes are not UTF-8, or hold NUL."""
    return os.fsencode(name).decode("utf-8", "backslashreplace").replace("\0", "\\x00")


def read_file(path: Path) -> bytes:
    """The content of a regular file."""
    with open_regular(path) as file:
        return file.read()
