"""WebDataset shards: a stream, whose shards the seed orders.

Of each file in a shard its place is kept, not its bytes: a stream may be larger than memory.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lidar_cli.data.listing import members
from lidar_cli.data.source import UNKNOWN, Candidate, Source, as_text, class_number, shuffled
from lidar_cli.errors import InputError, MissingExtra, first_line
from lidar_cli.settings import SampleSettings

LONGEST_CLASS = 1024  # bytes of a .cls file
_IMAGE_KEYS = ("jpg", "jpeg", "png", "webp", "ppm", "image")


def shards(data: str, name: str, settings: SampleSettings) -> Source:
    """The images of a folder of shards. Raises InputError if there are none, MissingExtra."""
    try:
        from webdataset import tariterators
    except ImportError as error:
        raise MissingExtra("data", "webdataset", f"--data {data}") from error
    paths = _paths(data, name, settings)

    def candidates() -> Iterator[Candidate]:
        for shard in (paths[index] for index in shuffled(len(paths), settings.seed)):
            try:
                for fields in tariterators.group_by_keys(_members(shard)):
                    member = next((fields[key] for key in _IMAGE_KEYS if key in fields), None)
                    if member is not None:
                        name = as_text(str(fields["__key__"]))
                        yield Candidate(name, _class(data, fields), member.read)
            except (OSError, ValueError, EOFError, tarfile.TarError) as error:
                reason = error.strerror if isinstance(error, OSError) else None
                reason = reason or str(error.args[0] if error.args else type(error).__name__)
                raise InputError(
                    f"--data {data}: the shard {shard} cannot be read: {reason.splitlines()[0]}"
                ) from error

    return Source(data, candidates(), None)


def _members(shard: str) -> Iterator[dict[str, Any]]:
    """The files of a shard as `group_by_keys` takes them."""
    for member in members(Path(shard)):
        if not member.is_link:
            yield {"fname": member.name, "data": member, "__url__": shard}


def _class(data: str, fields: dict[str, Any]) -> int:
    member = fields.get("cls")
    if member is None:
        return UNKNOWN
    text = member.read()[:LONGEST_CLASS].decode("utf-8", "replace")
    number = class_number(text)
    if number is None:
        raise InputError(
            f"--data {data}: the class of {as_text(fields['__key__'])} is {text!r}; expected a "
            "number, since a stream does not show all classes; a single .tar file may have names"
        )
    return number


def _paths(data: str, name: str, settings: SampleSettings) -> list[str]:
    """Shard files: of a split in the folder's info file, of a brace pattern, or all tar files."""
    from timm.data.readers.reader_wds import ReaderWds

    folder = (settings.data_dir or Path()) / name
    split = settings.split
    if not folder.is_dir():
        raise InputError(f"--data {data}: no folder {folder}; expected one that holds .tar shards")
    if split is not None or any((folder / info).is_file() for info in ("_info.json", "info.json")):
        try:
            reader = ReaderWds(root=str(folder), split=split or "train")
        except (RuntimeError, KeyError, ValueError) as error:
            raise InputError(f"--data {data}: split not found: {first_line(error)}") from error
        return [str(folder / shard) for shard in reader.split_info.filenames]
    paths = sorted(str(shard) for shard in folder.glob("*.tar"))
    if not paths:
        raise InputError(f"--data {data}: no .tar shards in {folder}")
    return paths
