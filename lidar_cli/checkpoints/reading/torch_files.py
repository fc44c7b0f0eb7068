"""Reads the two file layouts of torch.save: a pickle, and the storages that it refers to.

zip (torch 1.6 and later)   <stem>/data.pkl, <stem>/byteorder, and <stem>/data/KEY for each storage
legacy (older torch, and on request)   pickles of a magic number, a version, the machine's
    properties, the object, and the keys of its storages; then each storage, in the order of the
    keys, its number of elements (int64) before its bytes

Persistent ids in both: ('storage', class, key, location, number of elements), to which legacy adds
None or (key, offset, elements) of a view, and ('module', class, file, source code) for module
classes.
Source: torch/serialization.py, _save, _load, _legacy_save and _legacy_load (torch 2.15).
"""

from __future__ import annotations

import itertools
import struct
import zipfile
from typing import Any, BinaryIO

from lidar_cli.checkpoints.reading.interpret import interpret
from lidar_cli.checkpoints.reading.lazy_tensor import (
    MAX_NUMBER,
    UNSET_PATH,
    Malformed,
    Source,
    Storage,
    element_size,
    storage_type,
)
from lidar_cli.checkpoints.reading.pickle import load, open_range
from lidar_cli.checkpoints.reading.rebuild import becomes_stand_in
from lidar_cli.checkpoints.reading.stand_ins import Global
from lidar_cli.errors import CheckpointError
from lidar_cli.runtime.files import ZipMembers, open_zip

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001
MAX_HEADER = 10_000  # bytes before the object of a legacy file

TreeAndNames = tuple[Any, tuple[str, ...]]  # the tree, and the names of its stand-ins


def read_zip(file: BinaryIO, path: str) -> TreeAndNames:
    """The tree in a zip file of torch.save; raises Malformed, Forbidden and CheckpointError."""
    entries = _entries(file)
    stem = _stem(path, list(entries))
    members = {name: source for name, (source, _) in _members(entries).items()}
    order = members.get(f"{stem}byteorder")
    if order is not None:
        file.seek(order.start)
        if file.read(min(order.nbytes, 9)) != b"little":
            raise CheckpointError(_big_endian(path))

    def persistent(saved: Any) -> Any:
        dtype, key, nbytes = _storage_id(saved)
        source = members.get(f"{stem}data/{key}")
        if source is None or nbytes > source.nbytes:
            size = "nothing" if source is None else f"{source.nbytes} bytes"
            raise Malformed(f"storage {key[:20]} should have {nbytes} bytes, the file {size}")
        return Storage(dtype, nbytes, source)

    pickle = members[f"{stem}data.pkl"]
    root, names = load(open_range(file, pickle.start, pickle.start + pickle.nbytes), True)
    return interpret(root, persistent), _stand_in_names(names)


def read_legacy(file: BinaryIO, path: str) -> TreeAndNames:
    """The tree in a legacy file; raises Malformed, Forbidden and CheckpointError."""
    end = file.seek(0, 2)
    header = open_range(file, 0, min(end, MAX_HEADER))
    magic, version, system = (interpret(load(header)[0]) for _ in range(3))
    if type(magic) is not int or magic != MAGIC or version != VERSION:
        raise Malformed("it does not begin with torch's number")
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise CheckpointError(_big_endian(path))
    rest = open_range(file, header.tell(), end)
    storages = _LegacyStorages()
    records, names = load(rest, True)
    root = interpret(records, storages.persistent)
    keys = interpret(load(rest)[0])
    storages.locate(file, rest.tell(), end, keys)
    return root, _stand_in_names(names)


def checksums(file: BinaryIO) -> list[tuple[int, int, int]]:
    """First byte, number of bytes and CRC-32 of each member of a zip file, in file order.

    Raises Malformed as `read_zip`.
    """
    members = _members(_entries(file)).values()
    rows = sorted((source.start, source.nbytes, crc) for source, crc in members)
    if any(a[0] + a[1] > b[0] for a, b in itertools.pairwise(rows)):
        raise Malformed("two of its members share their bytes")
    return rows


def _entries(file: BinaryIO) -> ZipMembers:
    try:
        return open_zip(file)[1]
    except ValueError as error:
        raise Malformed(str(error)) from error


def _members(entries: ZipMembers) -> dict[str, tuple[Source, int]]:
    """The bytes of each member, and their CRC-32; raises Malformed if one is compressed."""
    for name, (info, _) in entries.items():
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise Malformed(f"its member {name[:60]} is compressed, which torch.save never does")
    return {
        name: (Source(UNSET_PATH, start, info.file_size), info.CRC)
        for name, (info, start) in entries.items()
    }


def _stand_in_names(names: dict[str, None]) -> tuple[str, ...]:
    return tuple(name for name in names if becomes_stand_in(name))


def _stem(path: str, names: list[str]) -> str:
    """The prefix of the member names, such as 'archive/'.

    Raises CheckpointError for a zip file that is not a checkpoint of torch.save.
    """
    stems = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
    stems = [stem for stem in stems if stem.count("/") == 1]
    if len(set(stems)) != 1:
        if any(name.endswith(".npy") for name in names):
            raise CheckpointError(f"{path} is a NumPy archive; score arrays with: lidar score")
        raise CheckpointError(
            f"{path} is a zip archive without the data.pkl of torch.save; unpack it first, "
            "if the checkpoint is inside"
        )
    if any(name.startswith((f"{stems[0]}code/", f"{stems[0]}constants.pkl")) for name in names):
        raise CheckpointError(
            f"{path} is a TorchScript module, which is a program; expected weights; save them "
            "with: torch.save(torch.jit.load(PATH).state_dict(), OTHER)"
        )
    return stems[0]


class _LegacyStorages:
    """The storages of a legacy file, whose offsets follow the pickle that refers to them."""

    def __init__(self) -> None:
        self.sources: dict[str, Source] = {}  # by storage key; offsets are set by `locate`
        self.item_sizes: dict[str, int] = {}  # bytes per element, by storage key
        self.views: dict[str, Storage] = {}  # by view key

    def persistent(self, saved: Any) -> Any:
        """The storage, or the module class, that a persistent id refers to."""
        if isinstance(saved, tuple) and len(saved) == 4 and saved[0] == "module":
            return saved[1]
        dtype, key, nbytes = _storage_id(saved)
        if key not in self.sources:
            self.sources[key] = Source(UNSET_PATH, 0, 0)
            self.item_sizes[key] = element_size(dtype)
        source = self.sources[key]
        source.nbytes = max(source.nbytes, nbytes)
        if len(saved) < 6 or saved[5] is None:
            return Storage(dtype, nbytes, source)
        view_key, offset, count = saved[5]
        if not all(type(n) is int and 0 <= n < MAX_NUMBER for n in (offset, count)):
            raise Malformed("a view of a storage has no size")
        first, view_nbytes = offset * element_size(dtype), count * element_size(dtype)
        if first + view_nbytes > nbytes:
            raise Malformed("a view reaches past its storage")
        return self.views.setdefault(str(view_key), Storage(dtype, view_nbytes, source, first))

    def locate(self, file: BinaryIO, position: int, end: int, keys: Any) -> None:
        """Set the offset of each storage; raises Malformed if one is missing or unused."""
        if not isinstance(keys, list):
            raise Malformed("it has no list of its storages")
        missing = dict(self.sources)
        for key in keys:
            source = missing.pop(key, None) if isinstance(key, str) else None
            if source is None:
                raise Malformed("it lists a storage that nothing uses, or one twice")
            file.seek(position)
            length = file.read(8)
            count = struct.unpack("<q", length)[0] if len(length) == 8 else -1
            nbytes = count * self.item_sizes[key]
            if count < 0 or position + 8 + nbytes > end or nbytes < source.nbytes:
                raise Malformed(
                    f"storage {key[:20]} should have {source.nbytes} bytes, the file "
                    f"{max(0, min(nbytes, end - position - 8))}"
                )
            source.start, source.nbytes = position + 8, nbytes
            position += 8 + nbytes
        if missing:
            raise Malformed(f"it ends before {len(missing)} of its storages")


def _storage_id(saved: Any) -> tuple[str, str, int]:
    """Element type, key and size in bytes of a storage, from its persistent id."""
    if not isinstance(saved, tuple) or len(saved) not in (5, 6) or saved[0] != "storage":
        raise Malformed("its pickle refers to something that is no storage")
    _, kind, key, _, count = saved[:5]
    dtype = storage_type(kind.name) if isinstance(kind, Global) else None
    if dtype is None or not isinstance(key, str):
        raise Malformed("its pickle refers to a storage of an unknown kind")
    if type(count) is not int or not 0 <= count < MAX_NUMBER:
        raise Malformed(f"storage {key[:20]} has an impossible size")
    return dtype, key, count * element_size(dtype)


def _big_endian(path: str) -> str:
    return (
        f"{path}: holds big-endian numbers; expected little-endian ones; load it where it was "
        "written, and save it on a little-endian machine"
    )
