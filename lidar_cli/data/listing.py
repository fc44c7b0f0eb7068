"""A folder of images, listed once: each directory by one path, in an order that is always the same.

Links to directories are followed after all real directories, and never to a directory that is
listed already or that holds the folder itself: such a link gives duplicates, and two of them a
walk of 2^40 steps.
"""

from __future__ import annotations

import os
import re
import tarfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

from lidar_cli.errors import first_line
from lidar_cli.runtime.files import open_regular

# As torchvision's folders.
IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")
)
# What desktops, archivers, storage servers and file systems add. None of it is the user's.
SYSTEM_FOLDERS = frozenset(
    (
        *("__MACOSX", "@eaDir", "#recycle", "@Recycle", "#snapshot", "$RECYCLE.BIN"),
        *("System Volume Information", "lost+found"),
    )
)
NAMED = 3  # folders, suffixes or links that a line names
SUFFIXES_COUNTED = 1000


@dataclass
class LeftOut:
    """What is not read, although it lies among the images."""

    hidden_images: int = 0
    folders: Counter[str] = field(default_factory=Counter)  # by their name, wherever they are
    repeated: list[str] = field(default_factory=list)  # links to a directory that is listed
    dangling: list[str] = field(default_factory=list)  # links to nothing
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # directory, reason
    links_in_tar: int = 0
    others: Counter[str] = field(default_factory=Counter)  # files, by their suffix

    def add_file(self, name: str) -> None:
        """Count a file that is no image, and one that would be, were it not hidden."""
        suffix = suffix_of(name)
        if name.startswith("."):
            self.hidden_images += suffix in IMAGE_SUFFIXES
        elif suffix in self.others or len(self.others) < SUFFIXES_COUNTED:
            self.others[suffix] += 1

    def remarks(self) -> list[str]:
        """One line for each kind that may surprise: hidden names, links."""
        lines = []
        hidden = [counted(self.hidden_images, "hidden image")] if self.hidden_images else []
        if self.folders:
            names = most_common(self.folders)
            hidden.append(f"{counted(self.folders.total(), 'hidden or system folder')} ({names})")
        if hidden:
            lines.append(f"left out {' and '.join(hidden)}")
        for links, kind in (
            (self.repeated, "a folder that is listed already, or holds this one"),
            (self.dangling, "nothing"),
        ):
            if links:
                lines.append(f"left out {counted(len(links), 'link')} to {kind}: {first(links)}")
        for where, reason in self.unreadable:
            lines.append(f"left out the folder {where}, which cannot be read: {reason}")
        if self.links_in_tar:
            lines.append(f"left out {counted(self.links_in_tar, 'link')} in the tar file")
        return lines

    def instead(self) -> str:
        """What is there in place of images, in words."""
        files = counted(self.others.total(), "other file")
        parts = [f"{files} ({most_common(self.others)})"] if self.others else []
        return "; ".join(parts + self.remarks()) or "nothing else is there"


@dataclass
class Listing:
    """The images of a folder, by directory.

    folders: relative path, "" for the folder itself, and the names of its images; both sorted.
    """

    root: Path
    folders: list[tuple[str, list[str]]] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)

    def finish(self) -> None:
        """Put the directories in order; from here on images have numbers."""
        self.folders.sort(key=lambda folder: folder[0])
        self._ends = list(accumulate(len(names) for _, names in self.folders))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def at(self, index: int) -> tuple[int, str]:
        """The directory of an image, by its place in `folders`, and the relative path."""
        place = bisect_right(self._ends, index)
        relative, names = self.folders[place]
        return place, joined(relative, names[index - self._ends[place]])


def list_folder(root: Path) -> Listing:
    """The images below a folder. Directories that cannot be read are in `left_out`."""
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
    """The directories seen so far, by device and inode, and links that are yet to be followed."""

    def __init__(self, listing: Listing) -> None:
        self.links: list[str] = []
        self._listing = listing
        self._left_out = listing.left_out
        self._seen = set[tuple[int, int]]()
        for parent in listing.root.resolve().parents:
            with suppress(OSError):  # one that nobody may enter by its path
                self._seen.add(_identity(parent))

    def follow(self, link: str) -> None:
        """List the directory to which a link leads, if it leads to one."""
        path = self._listing.root / link
        if os.path.isdir(path):  # noqa: PTH112 - unlike Path's, it raises no OSError
            self.add_tree(link)
        elif os.path.exists(path):  # noqa: PTH110
            self._left_out.add_file(path.name)
        else:
            self._left_out.dangling.append(link)

    def add_tree(self, start: str) -> None:
        """List a directory and those below it, links left for later."""
        waiting = [start]
        while waiting:
            relative = waiting.pop()
            try:
                identity = _identity(self._listing.root / relative)
                if identity in self._seen:
                    self._left_out.repeated.append(relative)
                    continue
                self._seen.add(identity)
                below = self._add_directory(relative)
            except OSError as error:
                reason = error.strerror or type(error).__name__
                self._left_out.unreadable.append((relative or ".", reason))
                continue
            waiting += sorted((joined(relative, name) for name in below), reverse=True)

    def _add_directory(self, relative: str) -> list[str]:
        """List the images of one directory; returns the directories in it."""
        images, below = [], []
        with os.scandir(self._listing.root / relative) as entries:
            for entry in entries:
                name = entry.name
                is_folder = entry.is_dir(follow_symlinks=False)
                if name[0] == "." or name in SYSTEM_FOLDERS:
                    if is_folder:
                        self._left_out.folders[name] += 1
                    else:
                        self._left_out.add_file(name)
                elif is_folder:
                    below.append(name)
                elif suffix_of(name) in IMAGE_SUFFIXES:  # a link too: what it is shows when read
                    images.append(name)
                elif entry.is_symlink():
                    self.links.append(joined(relative, name))
                else:
                    self._left_out.add_file(name)
        if images:
            self._listing.folders.append((relative, sorted(images)))
        return below


def suffix_of(name: str) -> str:
    """The suffix in lower case with its dot, "" without one."""
    at = name.rfind(".")
    return name[at:].lower() if at > 0 else ""


def joined(folder: str, name: str) -> str:
    """A relative path; no folder is the root."""
    return f"{folder}/{name}" if folder else name


def counted(count: int, noun: str) -> str:
    """`1 link`, `2 links`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def most_common(counts: Counter[str]) -> str:
    """The most frequent names, ties by name."""
    names = sorted(counts, key=lambda name: (-counts[name], name))
    return first(name or "no suffix" for name in names)


def first(names: Iterable[str]) -> str:
    """The first names with commas, and dots if there are more."""
    every = list(names)
    return ", ".join(every[:NAMED]) + (", ..." if len(every) > NAMED else "")


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


MOST_OF_A_HEADER = 2**17  # bytes read to find one file: long names, extended attributes
MOST_DIGITS = 256  # in a row in an extended header; tarfile's search takes their square
DEEPEST = 4  # tar files in one another


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar file. name: of a tar file inside, less .tar, and of the file in it."""

    archive: Path
    name: str
    offset: int
    size: int
    is_link: bool = False

    def read(self) -> bytes:
        """Its bytes. Raises EOFError if the tar file ends before they do."""
        with open_regular(self.archive) as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) < self.size:
            raise EOFError("the tar file ends inside it")
        return content


def members(archive: Path, nested: bool = False) -> Iterator[Member]:
    """The files and links in a tar file, with `nested` also those of tar files in it.

    Raises tarfile.ReadError or OSError if it is damaged, also after the first file, where tarfile
    itself takes damage for the end.
    """
    with open_regular(archive) as file:
        window = _Headers(file, 0, archive.stat().st_size)
        yield from _members(archive, window, "", DEEPEST if nested else 0)


def _members(archive: Path, headers: _Headers, folder: str, depth: int) -> Iterator[Member]:
    tar = _read(lambda: tarfile.TarFile(fileobj=headers))  # type: ignore[arg-type]
    end = 0
    while True:
        headers.left = MOST_OF_A_HEADER
        member = _read(tar.next)
        tar.members = []  # it keeps all that it has read
        if member is None:
            break
        if member.size < 0 or member.offset_data < end:
            raise tarfile.ReadError(f"a file of {member.size} bytes at byte {member.offset}")
        end = member.offset_data
        if not (member.isfile() or member.islnk() or member.issym()):
            continue
        name, start = joined(folder, member.name), headers.start + member.offset_data
        is_link = not member.isfile()
        if depth and not is_link and suffix_of(name) == ".tar":
            inner = _Headers(headers.file, start, member.size)
            yield from _members(archive, inner, name[: -len(".tar")], depth - 1)
        else:
            yield Member(archive, name, start, member.size, is_link)
    headers.seek(tar.offset)
    if headers.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"damaged at byte {headers.start + tar.offset:,}")


def _read(step: Callable[[], Any]) -> Any:
    """A step of tarfile, which raises almost anything on headers made to do harm."""
    try:
        return step()
    except (tarfile.TarError, OSError):
        raise
    except Exception as error:
        raise tarfile.ReadError(first_line(error)) from error


class _Headers:
    """A tar file, or one inside another, of which tarfile reads the headers alone.

    left: bytes that may still be read; an end without bytes counts too, where tarfile may wait
    for more.
    """

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self.file = file
        self.start = start
        self.left = MOST_OF_A_HEADER
        self._size = size
        self._at = 0

    def tell(self) -> int:
        return self._at

    def seek(self, at: int) -> int:
        self._at = at
        return at

    def read(self, size: int) -> bytes:
        self.left -= max(size, tarfile.BLOCKSIZE)
        if self.left < 0:
            raise tarfile.ReadError(
                f"a header of more than {MOST_OF_A_HEADER:,} bytes before byte "
                f"{self.start + self._at:,}"
            )
        self.file.seek(self.start + self._at)
        content = self.file.read(max(0, min(size, self._size - self._at)))
        self._at += len(content)
        if any(len(digits) > MOST_DIGITS for digits in re.findall(rb"\d+", content)):
            raise tarfile.ReadError(f"a header with a number of more than {MOST_DIGITS} digits")
        return content
