"""What the readers of data have in common: images in the order of the seed, none read yet."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lidar_cli.data.decode import Content
from lidar_cli.runtime.files import open_regular


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


SAME_SPLIT = (
    ("train", "training"),
    ("val", "valid", "validation", "eval", "evaluation"),
    ("test", "testing"),
)
SPLITS = frozenset(name for group in SAME_SPLIT for name in group)
UNKNOWN = -1
LARGEST = 2**31  # a number beyond it is a name


def folder_classes(folders: Sequence[str], level: int | None) -> list[str]:
    """The class that each relative folder stands for, "" for none.

    It is the whole path, less a leading split where all folders are in one: two classes whose last
    folders are alike stay two. level: how many folders from the first on name the class, from the
    last on if negative; 0 for no classes.
    """
    paths = [[part for part in folder.split("/") if part not in ("", ".", "..")]
             for folder in folders]  # fmt: skip
    if all(path[0] in SPLITS for path in paths if path):
        paths = [path[1:] for path in paths]
    if level is not None:
        paths = [path[:level] if level >= 0 else path[level:] for path in paths]
    return ["/".join(path) for path in paths]


def numbered(names: Iterable[str]) -> dict[str, int]:
    """Class numbers in the order of the sorted names, as torchvision's ImageFolder has them."""
    return {name: number for number, name in enumerate(sorted(set(names) - {""}))}


def class_number(text: str) -> int | None:
    """The number that a text is, None if it is a name. Negative ones are unknown classes."""
    try:
        number = int(text)
    except ValueError:
        return None
    if abs(number) >= LARGEST:
        return None
    return max(number, UNKNOWN)


def text_labels(texts: Sequence[str | None]) -> list[int]:
    """Class numbers of texts, None unknown: themselves if all are numbers, else by sorted name."""
    present = {text.strip() for text in texts if text is not None} - {""}
    numbers = {text: class_number(text) for text in present}
    if None in numbers.values():
        numbers = {**numbered(present)}
    labels = (numbers.get((text or "").strip()) for text in texts)
    return [UNKNOWN if label is None else label for label in labels]


def remarks(sizes: Counter[str]) -> list[str]:
    """A warning if more than half of the classes have one image; sizes: images a class."""
    single = sum(size == 1 for size in sizes.values())
    if len(sizes) < 2 or 2 * single <= len(sizes):
        return []
    return [
        f"warning: {single:,} of {len(sizes):,} classes have one image, since the whole path of a "
        "folder names the class; --class-level 1 takes the first folder alone, 0 none"
    ]
