"""Assigns class numbers to the names of folders and to texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

SAME_SPLIT = (
    ("train", "training"),
    ("val", "valid", "validation", "eval", "evaluation"),
    ("test", "testing"),
)
SPLITS = frozenset(name for group in SAME_SPLIT for name in group)
UNKNOWN = -1
LARGEST = 2**31  # a text with a number from here on counts as a name


def folder_classes(folders: Sequence[str], level: int | None) -> list[str]:
    """The class of each relative folder, "" for none.

    The class is the complete path, so that two folders of the same name in different folders are
    two classes; a leading split is dropped if all folders are in splits. level: number of folders
    of the path that name the class, the first ones, or the last ones if negative; 0 for no classes.
    """
    paths = [
        [part for part in folder.split("/") if part not in ("", ".", "..")] for folder in folders
    ]
    if all(path[0] in SPLITS for path in paths if path):
        paths = [path[1:] for path in paths]
    if level is not None:
        paths = [path[:level] if level >= 0 else path[level:] for path in paths]
    return ["/".join(path) for path in paths]


def folder_labels(classes: Sequence[str]) -> list[int]:
    """Class numbers of folders; all unknown if there is only one class."""
    numbers = numbered(classes)
    return [numbers.get(name, UNKNOWN) if len(numbers) > 1 else UNKNOWN for name in classes]


def numbered(names: Iterable[str]) -> dict[str, int]:
    """Name -> class number in the order of the sorted names, as in torchvision's ImageFolder."""
    return {name: number for number, name in enumerate(sorted(set(names) - {""}))}


def class_number(text: str) -> int | None:
    """The class number in a text, UNKNOWN if it is negative; None if the text is a name."""
    try:
        number = int(text)
    except ValueError:
        return None
    if abs(number) >= LARGEST:
        return None
    return max(number, UNKNOWN)


def text_labels(texts: Sequence[str | None]) -> list[int]:
    """Class numbers of texts: the numbers themselves if all are numbers, else by sorted name."""
    present = {text.strip() for text in texts if text is not None} - {""}
    numbers = {text: class_number(text) for text in present}
    if None in numbers.values():
        numbers = {**numbered(present)}
    labels = (numbers.get((text or "").strip()) for text in texts)
    return [UNKNOWN if label is None else label for label in labels]


def class_size_remarks(images: Counter[str], level: int | None) -> list[str]:
    """A warning if classes are complete paths and most have one image. images: number by class."""
    sizes = [size for name, size in images.items() if name]
    single = sizes.count(1)
    if level is not None or len(sizes) < 2 or 2 * single <= len(sizes):
        return []
    return [
        f"warning: {single:,} of {len(sizes):,} classes have one image, since the whole path of a "
        "folder names the class; --class-level 1 takes the first folder alone, 0 none"
    ]
