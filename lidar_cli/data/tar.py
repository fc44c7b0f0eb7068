"""Lists the images of tar files and of WebDataset shards; shards are read as a stream.

The position of each image is recorded, not its bytes: a tar file may be larger than memory.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lidar_cli.data.dataset import Candidate, Source, as_text, shuffled
from lidar_cli.data.folders import (
    IMAGE_SUFFIXES,
    SYSTEM_FOLDERS,
    Ignored,
    joined,
    suffix_of,
    without_shared,
)
from lidar_cli.data.labels import (
    UNKNOWN,
    class_number,
    class_size_remarks,
    folder_classes,
    folder_labels,
    text_labels,
)
from lidar_cli.errors import InputError, MissingExtra, first_line
from lidar_cli.runtime.files import open_regular
from lidar_cli.settings import SampleSettings

LONGEST_CLASS = 1024  # bytes of a .cls file
MOST_OF_A_HEADER = 2**17  # bytes read to find one file: long names, extended attributes
MOST_DIGITS = 256  # consecutive digits in a header; tarfile's search is quadratic in them
DEEPEST = 4  # levels of tar files in tar files
_IMAGE_KEYS = ("jpg", "jpeg", "png", "webp", "ppm", "image")


def tar_source(data: str, path: Path, settings: SampleSettings) -> Source:
    """The images in a tar file and in those inside it; classes from .cls files, else folders."""
    ignored = Ignored()
    images: list[TarMember] = []
    texts: dict[str, str] = {}
    try:
        for member in tar_members(path, nested=True):
            suffix = suffix_of(member.name)
            if _is_hidden(member.name):
                ignored.hidden_images += suffix in IMAGE_SUFFIXES
            elif member.is_link:
                ignored.links_in_tar += 1
            elif suffix in IMAGE_SUFFIXES:
                images.append(member)
            elif suffix == ".cls":
                texts[_stem(member.name)] = _class_text(member)
            else:
                ignored.add_file(_parts(member.name)[-1])
    except (OSError, EOFError, tarfile.TarError) as error:
        raise InputError(
            f"--data {data}: no images could be listed: {first_line(error)}", code="damaged-tar"
        ) from error
    if not images:
        raise ignored.no_images(data)
    remarks = ignored.remarks()
    if texts and settings.class_level is None:
        labels = text_labels([texts.get(_stem(image.name)) for image in images])
    else:
        folders = ["/".join(_parts(image.name)[:-1]) for image in images]
        classes = folder_classes(without_shared(folders), settings.class_level)
        labels = folder_labels(classes)
        remarks += class_size_remarks(Counter(classes), settings.class_level)

    def candidate(index: int) -> Candidate:
        return Candidate(as_text(images[index].name), labels[index], images[index].read)

    order = shuffled(len(images), settings.seed)
    return Source(data, map(candidate, order), len(order), remarks=remarks)


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".", "..")] or [name]


def _is_hidden(name: str) -> bool:
    parts = _parts(name)
    return any(part.startswith(".") for part in parts) or not SYSTEM_FOLDERS.isdisjoint(parts[:-1])


def _stem(name: str) -> str:
    """The path without the suffix; the files of one sample share it."""
    return name[: len(name) - len(suffix_of(name))]


def _class_text(member: TarMember) -> str:
    if member.size > LONGEST_CLASS:
        raise tarfile.ReadError(f"{member.name} has {member.size:,} bytes; expected a class")
    return member.read().decode("utf-8", "replace")


def webdataset_source(data: str, name: str, settings: SampleSettings) -> Source:
    """The images of a folder of shards; the seed shuffles the shards, not the images of a shard.

    Raises InputError if there are no shards, MissingExtra without the package webdataset.
    """
    try:
        from webdataset import tariterators
    except ImportError as error:
        raise MissingExtra("data", "webdataset", f"--data {data}") from error
    paths = _shard_paths(data, name, settings)

    def candidates() -> Iterator[Candidate]:
        for shard in (paths[index] for index in shuffled(len(paths), settings.seed)):
            try:
                for fields in tariterators.group_by_keys(_shard_files(shard)):
                    member = next((fields[key] for key in _IMAGE_KEYS if key in fields), None)
                    if member is not None:
                        name = as_text(str(fields["__key__"]))
                        yield Candidate(name, _shard_class(data, fields), member.read)
            except (OSError, ValueError, EOFError, tarfile.TarError) as error:
                reason = error.strerror if isinstance(error, OSError) else None
                reason = reason or str(error.args[0] if error.args else type(error).__name__)
                raise InputError(
                    f"--data {data}: the shard {shard} cannot be read: {reason.splitlines()[0]}",
                    code="damaged-tar",
                ) from error

    return Source(data, candidates(), None)


def _shard_files(shard: str) -> Iterator[dict[str, Any]]:
    """The files of a shard in the form that `group_by_keys` expects."""
    for member in tar_members(Path(shard)):
        if not member.is_link:
            yield {"fname": member.name, "data": member, "__url__": shard}


def _shard_class(data: str, fields: dict[str, Any]) -> int:
    member = fields.get("cls")
    if member is None:
        return UNKNOWN
    text = member.read()[:LONGEST_CLASS].decode("utf-8", "replace")
    number = class_number(text)
    if number is None:
        raise InputError(
            f"--data {data}: the class of {as_text(fields['__key__'])} is {text!r}; expected a "
            "number, since a stream does not show all classes; a single .tar file may have names",
            code="class-name",
        )
    return number


def _shard_paths(data: str, name: str, settings: SampleSettings) -> list[str]:
    """The shard files: those of a split, which may be a brace pattern, or all .tar files.

    Raises InputError if there is no folder, no such split or no shard.
    """
    from timm.data.readers.reader_wds import ReaderWds

    folder = (settings.data_dir or Path()) / name
    split = settings.split
    if not folder.is_dir():
        raise InputError(
            f"--data {data}: no folder {folder}; expected one that holds .tar shards",
            code="no-such-file",
        )
    if split is not None or any((folder / info).is_file() for info in ("_info.json", "info.json")):
        try:
            reader = ReaderWds(root=str(folder), split=split or "train")
        except (RuntimeError, KeyError, ValueError) as error:
            raise InputError(
                f"--data {data}: split not found: {first_line(error)}", code="no-such-split"
            ) from error
        return [str(folder / shard) for shard in reader.split_info.filenames]
    paths = sorted(str(shard) for shard in folder.glob("*.tar"))
    if not paths:
        raise InputError(f"--data {data}: no .tar shards in {folder}", code="no-images")
    return paths


@dataclass(frozen=True, slots=True)
class TarMember:
    """A file in a tar file.

    name: its path in the tar file. For a file in an inner tar file, the path of the inner file
    without .tar comes first.
    """

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


def tar_members(archive: Path, nested: bool = False) -> Iterator[TarMember]:
    """The files and links in a tar file; with `nested` also those of tar files in it.

    Raises tarfile.ReadError or OSError if it is damaged, also after the first file, where tarfile
    would take damage for the end.
    """
    with open_regular(archive) as file:
        headers = _Headers(file, 0, archive.stat().st_size)
        yield from _members(archive, headers, "", DEEPEST if nested else 0)


def _members(archive: Path, headers: _Headers, folder: str, depth: int) -> Iterator[TarMember]:
    tar = _read(lambda: tarfile.TarFile(fileobj=headers))
    end = 0
    while True:
        headers.allowed = MOST_OF_A_HEADER
        member = _read(tar.next)
        tar.members = []  # where tarfile collects all members
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
            yield TarMember(archive, name, start, member.size, is_link)
    headers.seek(tar.offset)
    if headers.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"damaged at byte {headers.start + tar.offset:,}")


def _read(step: Callable[[], Any]) -> Any:
    """The result of `step`, a call of tarfile; any error becomes a tarfile.ReadError.

    tarfile raises almost anything on malicious headers.
    """
    try:
        return step()
    except (tarfile.TarError, OSError):
        raise
    except Exception as error:
        raise tarfile.ReadError(first_line(error)) from error


class _Headers(io.RawIOBase):
    """A tar file, or one inside another, opened so that tarfile can only read its headers.

    allowed: bytes that may still be read. Reads at the end count too, since tarfile may repeat
    them forever.
    """

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        super().__init__()
        self.file = file
        self.start = start
        self.allowed = MOST_OF_A_HEADER
        self._size = size
        self._at = 0

    def seek(self, at: int, whence: int = os.SEEK_SET) -> int:
        self._at = at + (self._at if whence == os.SEEK_CUR else 0)
        return self._at

    def read(self, size: int = -1) -> bytes:
        self.allowed -= max(size, tarfile.BLOCKSIZE)
        if self.allowed < 0:
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
