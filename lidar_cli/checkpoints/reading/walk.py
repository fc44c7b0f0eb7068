"""Reads a checkpoint file as a JSON record; runs only in the child process of `runtime.sandbox`.

pickle.py reads the pickle in a torch file as records, interpret.py turns these into values, and
record.py writes the tree as JSON.

safetensors
    8 bytes   length of the header, little-endian
    header    JSON: name -> {"dtype", "shape", "data_offsets": [begin, end]}, and "__metadata__"
    the rest  the numbers, row-major, little-endian; offsets count from here, without gaps
Source: the format's description in the safetensors documentation.

torch.save (Lightning's files are zip files of it)
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

import gc
import itertools
import json
import math
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from lidar_cli.checkpoints.reading.interpret import interpret
from lidar_cli.checkpoints.reading.lazy_tensor import (
    BY_SAFETENSORS,
    EXPECTED,
    ITEMSIZE,
    MAX_NUMBER,
    UNSET_PATH,
    LazyTensor,
    Malformed,
    Source,
    Storage,
    checked_sizes,
    element_size,
    storage_type,
)
from lidar_cli.checkpoints.reading.pickle import Forbidden, load, open_range
from lidar_cli.checkpoints.reading.rebuild import becomes_stand_in
from lidar_cli.checkpoints.reading.record import encode
from lidar_cli.checkpoints.reading.stand_ins import Global
from lidar_cli.errors import CheckpointError, shortened
from lidar_cli.runtime.files import ZipMembers, open_zip

DAMAGED = {  # kind of file -> how a message describes a malformed one
    "safetensors": "damaged safetensors file",
    "zip": "a damaged or truncated torch file",
    "legacy": "not a torch file, or damaged",
    "metadata": "damaged",
    "distcp": "damaged or truncated",
}
OF_FOLDERS = ("metadata", "distcp")  # kinds of files of torch.distributed.checkpoint

# First bytes of files that are often taken for a checkpoint: what they are, and the next step.
OTHER_FORMATS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; run: git lfs pull"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file; score feature files with: lidar score"),
    (b"\x1f\x8b", "gzip data; unpack it first"),
    (b"<!DOCTYPE", "an HTML page, probably saved in place of a download; fetch the file again"),
    (b"<html", "an HTML page, probably saved in place of a download; fetch the file again"),
)


def walk(file: BinaryIO, path: str) -> Any:
    """The kind of a checkpoint file and its record; raises CheckpointError, which names `path`."""
    kind = container_kind(file, path)
    gc.disable()  # it would traverse up to a million values repeatedly
    with as_checkpoint_errors(path, kind):
        names: tuple[str, ...] = ()
        tree: Any
        if kind == "safetensors":
            tree = read_safetensors(file)
        elif kind == "zip":
            tree, names = read_zip(file, path)
        else:
            tree, names = read_legacy(file, path)
        return {"kind": kind, **encode(tree, names)}


def walk_checksums(file: BinaryIO, path: str) -> list[tuple[int, int, int]]:
    """As `checksums`; empty for a file that is not a zip file. Raises CheckpointError."""
    if file.read(2) != b"PK":
        return []
    with as_checkpoint_errors(path, "zip"):
        return checksums(file)


@contextmanager
def as_checkpoint_errors(path: str, kind: str) -> Iterator[None]:
    """Raise errors of the readers as a CheckpointError whose message has the path."""
    try:
        yield
    except Malformed as error:
        advice = f"{EXPECTED}; copy or save it again"
        if kind in OF_FOLDERS:
            advice = "expected a part of a distributed checkpoint; copy or save the folder again"
        raise CheckpointError(
            f"{path}: {DAMAGED[kind]}: {shortened(str(error))}; {advice}"
        ) from error
    except Forbidden as error:
        raise CheckpointError(
            f"{path}: names {shortened(str(error))}, which no checkpoint needs and which is never "
            "called; do not load it elsewhere; take the file from a source that you trust"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    finally:
        gc.enable()


def container_kind(file: BinaryIO, path: str) -> str:
    """'safetensors', 'zip' or 'legacy'; raises CheckpointError for a file of another format."""
    start = file.read(512)
    if not start:
        raise CheckpointError(f"{path} is empty; {EXPECTED}; copy it again")
    for signature, meaning in OTHER_FORMATS:
        if start.lstrip().lower().startswith(signature.lower()):
            raise CheckpointError(f"{path} is {meaning}")
    if all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in start):
        raise CheckpointError(f"{path} is a text file; {EXPECTED}")
    if start[257:262] == b"ustar":
        raise CheckpointError(f"{path} is a tar archive; {EXPECTED}; unpack it first")
    # The format limits a header to 100 MB; the first bytes of a pickle give a far larger number.
    length = struct.unpack("<Q", start[:8])[0] if start[8:9] == b"{" else 10**8
    if length < 10**8:
        return "safetensors"
    return "zip" if start.startswith(b"PK") else "legacy"


MAX_SAFETENSORS_HEADER = (
    10_000_000  # bytes; the format allows 100 MB, which no existing model needs
)


def read_safetensors(file: BinaryIO) -> dict[str, LazyTensor]:
    """The tensors of a file by name; raises Malformed if the header is wrong for the file."""
    end = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    begin = 8 + length
    if begin > end:
        raise Malformed(f"its header should have {length} bytes, the file has {end}")
    if length > MAX_SAFETENSORS_HEADER:
        raise Malformed(f"its header has {length} bytes; at most {MAX_SAFETENSORS_HEADER} are read")
    content = file.read(length)
    try:
        header = json.loads(content, object_pairs_hook=_without_duplicates)
    except (RecursionError, ValueError) as error:
        raise Malformed("its header is not JSON") from error
    if not isinstance(header, dict):
        raise Malformed("its header names no tensors")
    header.pop("__metadata__", None)
    tensors = {name: _tensor(begin, end, name, entry) for name, entry in header.items()}
    position = begin
    for tensor in sorted(tensors.values(), key=_byte_range):
        if _byte_range(tensor)[0] != position:
            raise Malformed("its tensors overlap, or leave a hole")
        position = _byte_range(tensor)[1]
    if position != end:
        raise Malformed(f"its tensors should end at byte {position}, the file at {end}")
    return tensors


def _tensor(begin: int, end: int, name: str, entry: Any) -> LazyTensor:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise Malformed(f"{name[:60]!a} has not the entries dtype, shape and data_offsets")
    dtype = BY_SAFETENSORS.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise Malformed(f"{name[:60]!a} has the unknown type {str(entry['dtype'])[:20]!a}")
    shape, offsets = checked_sizes(entry["shape"]), checked_sizes(entry["data_offsets"])
    elements = math.prod(shape)
    if len(offsets) != 2 or math.prod(max(n, 1) for n in shape) > MAX_NUMBER:
        raise Malformed(f"{name[:60]!a} has an impossible shape or offset")
    first, last = offsets
    if last - first != elements * ITEMSIZE[dtype] or begin + last > end:
        raise Malformed(
            f"{name[:60]!a} should have {elements * ITEMSIZE[dtype]} bytes, the file gives it "
            f"bytes {first} to {last} of {end - begin}"
        )
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    storage = Storage(dtype, last - first, Source(UNSET_PATH, begin + first, last - first))
    return LazyTensor(dtype, shape, tuple(strides), storage=storage)


def _byte_range(tensor: LazyTensor) -> tuple[int, int]:
    """Offsets in the file of the first byte and of the end."""
    assert tensor.storage is not None
    return tensor.storage.source.start, tensor.storage.source.start + tensor.nbytes


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name occurs twice")
    return entries


MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001
MAX_LEGACY_HEADER = 10_000  # bytes before the object of a legacy file

TreeAndNames = tuple[Any, tuple[str, ...]]  # the tree, and the names of its stand-ins


def read_zip(file: BinaryIO, path: str, origin: int = 0) -> TreeAndNames:
    """The tree in a zip file of torch.save; raises Malformed, Forbidden and CheckpointError.

    origin: where the zip file begins, if `file` is a part of another file.
    """
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
    tree = interpret(root, persistent)
    for source in members.values():
        source.start += origin
    return tree, _stand_in_names(names)


def read_legacy(file: BinaryIO, path: str) -> TreeAndNames:
    """The tree in a legacy file; raises Malformed, Forbidden and CheckpointError."""
    end = file.seek(0, 2)
    header = open_range(file, 0, min(end, MAX_LEGACY_HEADER))
    magic, version, system = (interpret(load(header)[0]) for _ in range(3))
    if type(magic) is not int or magic != MAGIC or version != VERSION:
        raise Malformed("it does not begin with torch's number")
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise CheckpointError(_big_endian(path))
    start = header.tell()
    rest = open_range(file, start, end)
    storages = _LegacyStorages()
    records, names = load(rest, True)
    root = interpret(records, storages.persistent)
    keys = interpret(load(rest)[0])
    storages.locate(file, start + rest.tell(), end, keys)
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
