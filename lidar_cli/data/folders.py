"""Lists folders of images, always in the same order and each directory once.

Links to directories are followed after all real directories. A link to a directory that is listed
already or that contains the folder itself is not followed: such links repeat images, and some would
make the walk endless.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate, takewhile
from pathlib import Path

from lidar_cli.data.dataset import SKIP, Candidate, Source, as_text, read_file, shuffled
from lidar_cli.data.labels import SAME_SPLIT, class_size_remarks, folder_classes, folder_labels
from lidar_cli.errors import InputError
from lidar_cli.settings import SampleSettings

# As torchvision's folders.
IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")
)
# Folders that desktops, archivers, storage servers and file systems add.
SYSTEM_FOLDERS = frozenset(
    (
        *("__MACOSX", "@eaDir", "#recycle", "@Recycle", "#snapshot", "$RECYCLE.BIN"),
        *("System Volume Information", "lost+found"),
    )
)
NAMED = 3  # folders, suffixes or links that a message names
SUFFIXES_COUNTED = 1000  # different ones, at most


def folder_source(data: str, root: Path, settings: SampleSettings) -> Source:
    """The images below a folder, or below its subfolder of a split."""
    listing = list_folder(_split_folder(root, settings.split))
    ignored = listing.ignored
    if ignored.unreadable and settings.bad_samples == "fail":
        where, reason = ignored.unreadable[0]
        path = as_text(str(listing.root / where))
        raise InputError(
            f"--data {data}: the folder {path} cannot be read: {reason}; repair it, or {SKIP}",
            code="unreadable-folder",
        )
    if not len(listing):
        raise ignored.no_images(data)
    folders = [relative for relative, _ in listing.folders]
    if settings.class_level is None:  # a level counts from the folder that --data names
        folders = without_shared(folders)
    classes = folder_classes(folders, settings.class_level)
    images = Counter[str]()
    for name, (_, names) in zip(classes, listing.folders, strict=True):
        images[name] += len(names)
    labels = folder_labels(classes)

    def candidate(index: int) -> Candidate:
        folder, relative = listing.at(index)
        path = listing.root / relative
        return Candidate(as_text(relative), labels[folder], lambda: read_file(path))

    order = shuffled(len(listing), settings.seed)
    remarks = [*ignored.remarks(), *class_size_remarks(images, settings.class_level)]
    return Source(data, map(candidate, order), len(order), remarks=remarks)


def check_has_image(data: str, root: Path, settings: SampleSettings) -> None:
    """Raise InputError as `folder_source` for a folder without images; lists none that has one."""
    if not _has_image(_split_folder(root, settings.split)):
        folder_source(data, root, settings)  # links that are followed may lead to images


def _has_image(folder: str | Path) -> bool:
    """Whether an image is below a folder; links to folders are not followed."""
    pending = [str(folder)]
    while pending:
        with suppress(OSError), os.scandir(pending.pop()) as entries:  # reported when it is listed
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif not entry.name.startswith(".") and suffix_of(entry.name) in IMAGE_SUFFIXES:
                    return True
    return False


def _split_folder(root: Path, split: str | None) -> Path:
    """The subfolder of a split, or the folder itself if it is not divided into splits."""
    name = split or "train"
    synonyms = [other for group in SAME_SPLIT if name in group for other in group]
    for folder in (name, *synonyms):
        if (root / folder).is_dir():
            return root / folder
    if split is not None:
        raise InputError(
            f"--data {root}: no split {split!r} in it; leave out --split to use all",
            code="no-such-split",
        )
    return root


def without_shared(folders: Sequence[str]) -> list[str]:
    """Relative folders without the leading folders that all share; "" is the root."""
    paths = [folder.split("/") if folder else [] for folder in folders]
    ends = zip(min(paths), max(paths))  # noqa: B905 - the shorter decides
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], ends))
    return ["/".join(path[shared:]) for path in paths]


@dataclass
class Ignored:
    """Files and folders below the folder of images that are not read."""

    hidden_images: int = 0
    folders: Counter[str] = field(default_factory=Counter)  # hidden or system, by name
    repeated: list[str] = field(default_factory=list)  # links to a directory listed already
    dangling: list[str] = field(default_factory=list)  # links to nothing
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # directory, reason
    links_in_tar: int = 0
    others: Counter[str] = field(default_factory=Counter)  # files that are no images, by suffix

    def add_file(self, name: str) -> None:
        """Count a file: a hidden image, or a file that is not hidden and no image."""
        suffix = suffix_of(name)
        if name.startswith("."):
            self.hidden_images += suffix in IMAGE_SUFFIXES
        elif suffix in self.others or len(self.others) < SUFFIXES_COUNTED:
            self.others[suffix] += 1

    def remarks(self) -> list[str]:
        """One line for each kind of omission that may surprise: hidden names, links."""
        lines = []
        hidden = [_counted(self.hidden_images, "hidden image")] if self.hidden_images else []
        if self.folders:
            names = _most_common(self.folders)
            hidden.append(f"{_counted(self.folders.total(), 'hidden or system folder')} ({names})")
        if hidden:
            lines.append(f"left out {' and '.join(hidden)}")
        for links, kind in (
            (self.repeated, "a folder that is listed already, or holds this one"),
            (self.dangling, "nothing"),
        ):
            if links:
                lines.append(f"left out {_counted(len(links), 'link')} to {kind}: {_first(links)}")
        for where, reason in self.unreadable:
            lines.append(f"left out the folder {where}, which cannot be read: {reason}")
        if self.links_in_tar:
            lines.append(f"left out {_counted(self.links_in_tar, 'link')} in the tar file")
        return [as_text(line) for line in lines]

    def no_images(self, data: str) -> InputError:
        """The error for data without images; it names the other files that are there."""
        files = _counted(self.others.total(), "other file")
        parts = [f"{files} ({as_text(_most_common(self.others))})"] if self.others else []
        others = "; ".join(parts + self.remarks()) or "nothing else is there"
        return InputError(
            f"--data {data}: no images could be listed: no file ends in "
            f"{', '.join(sorted(IMAGE_SUFFIXES))} ({others})",
            code="no-images",
        )


@dataclass
class Listing:
    """The images of a folder, by directory.

    folders: relative path, "" for the folder itself, and the names of its images. Both are sorted.
    """

    root: Path
    folders: list[tuple[str, list[str]]] = field(default_factory=list)
    ignored: Ignored = field(default_factory=Ignored)

    def finish(self) -> None:
        """Sort the directories and number the images."""
        self.folders.sort(key=lambda folder: folder[0])
        self._ends = list(accumulate(len(names) for _, names in self.folders))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def at(self, index: int) -> tuple[int, str]:
        """The index in `folders` of an image's directory, and the image's relative path."""
        number = bisect_right(self._ends, index)
        relative, names = self.folders[number]
        return number, joined(relative, names[index - self._ends[number]])


def list_folder(root: Path) -> Listing:
    """The images below a folder; directories that cannot be read are in its `ignored`."""
    listing = Listing(root)
    walk = _Walk(listing)
    walk.add_tree("")
    while walk.links:
        links, walk.links = sorted(walk.links), []
        for link in links:
            walk.follow(link)
    listing.finish()
    return listing


class _Walk:
    """A walk through a folder: the directories visited so far, and the links to follow later."""

    def __init__(self, listing: Listing) -> None:
        self.links: list[str] = []
        self._listing = listing
        self._ignored = listing.ignored
        self._seen = set[tuple[int, int]]()
        for parent in listing.root.resolve().parents:
            with suppress(OSError):  # no permission to enter it by its path
                self._seen.add(_identity(parent))

    def follow(self, link: str) -> None:
        """List the directory that a link points to, or count the link as ignored."""
        path = self._listing.root / link
        if os.path.isdir(path):  # noqa: PTH112 - unlike Path's, it raises no OSError
            self.add_tree(link)
        elif os.path.exists(path):  # noqa: PTH110
            self._ignored.add_file(path.name)
        else:
            self._ignored.dangling.append(link)

    def add_tree(self, start: str) -> None:
        """List a directory and all below it; links are added to `links`."""
        waiting = [start]
        while waiting:
            relative = waiting.pop()
            try:
                identity = _identity(self._listing.root / relative)
                if identity in self._seen:
                    self._ignored.repeated.append(relative)
                    continue
                self._seen.add(identity)
                below = self._add_directory(relative)
            except OSError as error:
                reason = error.strerror or type(error).__name__
                self._ignored.unreadable.append((relative or ".", reason))
                continue
            waiting += sorted((joined(relative, name) for name in below), reverse=True)

    def _add_directory(self, relative: str) -> list[str]:
        """List the images of one directory; returns the names of its subdirectories."""
        images, below = [], []
        with os.scandir(self._listing.root / relative) as entries:
            for entry in entries:
                name = entry.name
                is_folder = entry.is_dir(follow_symlinks=False)
                if name[0] == "." or name in SYSTEM_FOLDERS:
                    if is_folder:
                        self._ignored.folders[name] += 1
                    else:
                        self._ignored.add_file(name)
                elif is_folder:
                    below.append(name)
                elif suffix_of(name) in IMAGE_SUFFIXES:  # also a link, whatever it points to
                    images.append(name)
                elif entry.is_symlink():
                    self.links.append(joined(relative, name))
                else:
                    self._ignored.add_file(name)
        if images:
            self._listing.folders.append((relative, sorted(images)))
        return below


def suffix_of(name: str) -> str:
    """The suffix in lower case with its dot, "" without one."""
    at = name.rfind(".")
    return name[at:].lower() if at > 0 else ""


def joined(folder: str, name: str) -> str:
    """The relative path of a name in a folder; "" is the root."""
    return f"{folder}/{name}" if folder else name


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _most_common(counts: Counter[str]) -> str:
    """The most frequent names; ties in the order of names."""
    names = sorted(counts, key=lambda name: (-counts[name], name))
    return _first(name or "no suffix" for name in names)


def _first(names: Iterable[str]) -> str:
    """The first names, separated by commas, and dots if there are more."""
    every = list(names)
    return ", ".join(every[:NAMED]) + (", ..." if len(every) > NAMED else "")


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
