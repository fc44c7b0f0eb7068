"""Folders of images and tar files."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from lidar_cli.data.dataset import SKIP
from lidar_cli.data.listing import (
    IMAGE_SUFFIXES,
    SYSTEM_FOLDERS,
    LeftOut,
    Member,
    list_folder,
    members,
    suffix_of,
)
from lidar_cli.data.source import (
    SAME_SPLIT,
    UNKNOWN,
    Candidate,
    Source,
    as_text,
    folder_classes,
    numbered,
    read_file,
    remarks,
    shuffled,
    text_labels,
)
from lidar_cli.errors import InputError, first_line
from lidar_cli.settings import SampleSettings

LONGEST_CLASS = 1024  # bytes of a .cls file


def files(data: str, settings: SampleSettings) -> Source:
    """The images of a folder or of a tar file, perhaps one of tar files.

    Raises InputError if there are none, or not of the split that is asked for.
    """
    root = Path(data)
    if not root.exists():
        raise InputError(
            f"--data {data}: no such file or folder; expected an image folder, a .tar file, "
            "wds/NAME, hfds/NAME, torch/NAME or 'embedded'"
        )
    if root.is_dir():
        return folder(data, root, settings)
    if root.suffix.lower() != ".tar" or not root.is_file():
        raise InputError(f"--data {data}: a file, and not a .tar; expected a folder of images")
    if settings.split is not None:
        raise InputError(f"--data {data}: a .tar file has no splits; leave out --split")
    return _tar(data, root, settings)


def folder(data: str, root: Path, settings: SampleSettings) -> Source:
    """The images below a folder, or below its subfolder of a split."""
    listing = list_folder(_split_folder(root, settings.split))
    left_out = listing.left_out
    if left_out.unreadable and settings.bad_samples == "fail":
        where, reason = left_out.unreadable[0]
        path = as_text(str(listing.root / where))
        raise InputError(
            f"--data {data}: the folder {path} cannot be read: {reason}; repair it, or {SKIP}"
        )
    if not len(listing):
        raise _no_images(data, left_out)
    folders = [relative for relative, _ in listing.folders]
    if settings.class_level is None:  # which counts from the folder that is named
        folders = _below_shared(folders)
    names = folder_classes(folders, settings.class_level)
    sizes = Counter[str]()
    for name, (_, images) in zip(names, listing.folders, strict=True):
        sizes[name] += len(images)
    labels = _labels(names)

    def candidate(index: int) -> Candidate:
        place, relative = listing.at(index)
        path = listing.root / relative
        return Candidate(as_text(relative), labels[place], lambda: read_file(path))

    order = shuffled(len(listing), settings.seed)
    notes = [*_remarks(left_out), *_class_remarks(sizes, settings)]
    return Source(data, map(candidate, order), len(order), remarks=notes)


def _tar(data: str, path: Path, settings: SampleSettings) -> Source:
    """The images in a tar file: classes are those of .cls files beside them, else folders."""
    left_out = LeftOut()
    images: list[Member] = []
    texts: dict[str, str] = {}
    try:
        for member in members(path, nested=True):
            if _is_hidden(member.name):
                left_out.hidden_images += suffix_of(member.name) in IMAGE_SUFFIXES
            elif member.is_link:
                left_out.links_in_tar += 1
            elif suffix_of(member.name) in IMAGE_SUFFIXES:
                images.append(member)
            elif suffix_of(member.name) == ".cls":
                texts[_stem(member.name)] = _class_text(member)
            else:
                left_out.add_file(_parts(member.name)[-1])
    except (OSError, EOFError, tarfile.TarError) as error:
        raise InputError(
            f"--data {data}: no images could be listed: {first_line(error)}"
        ) from error
    if not images:
        raise _no_images(data, left_out)
    notes = _remarks(left_out)
    if texts and settings.class_level is None:
        labels = text_labels([texts.get(_stem(image.name)) for image in images])
    else:
        folders = ["/".join(_parts(image.name)[:-1]) for image in images]
        names = folder_classes(_below_shared(folders), settings.class_level)
        labels = _labels(names)
        notes += _class_remarks(Counter(names), settings)

    def candidate(index: int) -> Candidate:
        return Candidate(as_text(images[index].name), labels[index], images[index].read)

    order = shuffled(len(images), settings.seed)
    return Source(data, map(candidate, order), len(order), remarks=notes)


def _labels(names: Sequence[str]) -> list[int]:
    """Class numbers; all unknown where there is one class, which says nothing."""
    numbers = numbered(names)
    return [numbers.get(name, UNKNOWN) if len(numbers) > 1 else UNKNOWN for name in names]


def _class_remarks(sizes: Counter[str], settings: SampleSettings) -> list[str]:
    del sizes[""]
    return remarks(sizes) if settings.class_level is None else []


def _remarks(left_out: LeftOut) -> list[str]:
    return [as_text(line) for line in left_out.remarks()]


def _no_images(data: str, left_out: LeftOut) -> InputError:
    suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
    return InputError(
        f"--data {data}: no images could be listed: no file ends in {suffixes} "
        f"({as_text(left_out.instead())})"
    )


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".", "..")] or [name]


def _is_hidden(name: str) -> bool:
    *folders, last = _parts(name)
    return any(part.startswith(".") for part in (*folders, last)) or any(
        part in SYSTEM_FOLDERS for part in folders
    )


def _stem(name: str) -> str:
    """What the files of one sample have in common: the path without the suffix."""
    return name[: len(name) - len(suffix_of(name))]


def _class_text(member: Member) -> str:
    if member.size > LONGEST_CLASS:
        raise tarfile.ReadError(f"{member.name} has {member.size:,} bytes; expected a class")
    return member.read().decode("utf-8", "replace")


def _below_shared(folders: Sequence[str]) -> list[str]:
    """Relative folders, "" for none, less those that all of them are in."""
    paths = [folder.split("/") if folder else [] for folder in folders]
    least, most = min(paths), max(paths)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(least, most)))  # noqa: B905 - the shorter decides
    return ["/".join(path[shared:]) for path in paths]


def _split_folder(root: Path, split: str | None) -> Path:
    """The subfolder of a split, or the folder itself where it is not divided into splits."""
    asked = split or "train"
    same = [name for group in SAME_SPLIT if asked in group for name in group]
    for name in (asked, *same):
        if (root / name).is_dir():
            return root / name
    if split is not None:
        raise InputError(f"--data {root}: no split {split!r} in it; leave out --split to use all")
    return root
