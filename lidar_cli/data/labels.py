"""Class numbers from the names of folders, and from texts."""

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
LARGEST = 2**31  # a larger number is a name


def folder_classes(folders: Sequence[str], level: int | None) -> list[str]:
    """The class of each relative folder, "" for none.

    It is the whole path, without a leading split if all folders are in splits: two classes whose
    last folders have one name stay two. level: how many folders from the first on name the class,
    from the last on if negative; 0 for no classes.
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
    """Class numbers of folders; all unknown if they are of one class."""
    numbers = numbered(classes)
    return [numbers.get(name, UNKNOWN) if len(numbers) > 1 else UNKNOWN for name in classes]


def numbered(names: Iterable[str]) -> dict[str, int]:
    """Class numbers in the order of the sorted names, as torchvision's ImageFolder has them."""
    return {name: number for number, name in enumerate(sorted(set(names) - {""}))}


def class_number(text: str) -> int | None:
    """The number in a text, None if it is a name. Negative numbers are unknown classes."""
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


def class_size_remarks(images: Counter[str], level: int | None) -> list[str]:
    """A warning if most classes that whole paths name have one image; images: by class."""
    sizes = [size for name, size in images.items() if name]
    single = sizes.count(1)
    if level is not None or len(sizes) < 2 or 2 * single <= len(sizes):
        return []
    return [
        f"warning: {single:,} of {len(sizes):,} classes have one image, since the whole path of a "
        "folder names the class; --class-level 1 takes the first folder alone, 0 none"
    ]
