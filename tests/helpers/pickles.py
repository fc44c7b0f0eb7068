"""Torch files made by hand: any pickle, with any storages, in both layouts."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

LEGACY_HEADER = b"".join(
    pickle.dumps(part, 2)
    for part in (
        0x1950A86A20F9469CFC6C,
        1001,
        {"protocol_version": 1001, "little_endian": True, "type_sizes": {}},
    )
)


class Stored:
    """Pickled as a storage's persistent id."""

    def __init__(self, key: str, numel: int, kind: Any = torch.FloatStorage) -> None:
        self.id = ("storage", kind, key, "cpu", numel)


class View:
    """Pickled as a tensor over a storage, of any size and stride."""

    def __init__(self, storage: Stored, size: Any, stride: Any, offset: Any = 0) -> None:
        self.args = (storage, offset, size, stride, False, OrderedDict())

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor_v2, self.args


def dumps(tree: Any, protocol: int = 2) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return value.id if isinstance(value, Stored) else None

    out = io.BytesIO()
    Pickler(out, protocol).dump(tree)
    return out.getvalue()


def write_zip(path: Path, content: bytes, storages: Mapping[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
        for key, value in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", value)
    return path


def write_legacy(
    path: Path, content: bytes, storages: Mapping[str, bytes] | None = None, itemsize: int = 4
) -> Path:
    storages = storages or {}
    with path.open("wb") as file:
        file.write(LEGACY_HEADER + content + pickle.dumps(list(storages), 2))
        for value in storages.values():
            file.write(struct.pack("<q", len(value) // itemsize) + value)
    return path


def write_sparse_zip(path: Path, content: bytes, sizes: Mapping[str, int]) -> Path:
    """A zip whose storages are holes in the file: gigabytes that take no room on the disk."""
    members: dict[str, bytes | int] = {"archive/data.pkl": content, "archive/version": b"3\n"}
    members |= {f"archive/data/{key}": count for key, count in sizes.items()}
    directory = b""
    with path.open("wb") as file:
        for name, value in members.items():
            count = value if isinstance(value, int) else len(value)
            at = file.tell()
            fields = struct.pack("<HHHHHIIIHH", 20, 0, 0, 0, 0, 0, count, count, len(name), 0)
            file.write(b"PK\x03\x04" + fields + name.encode())
            file.write(b"" if isinstance(value, int) else value)
            file.seek(at + 30 + len(name) + count)
            directory += b"PK\x01\x02\x14\0" + fields + struct.pack("<HHHII", 0, 0, 0, 0, at)
            directory += name.encode()
        start = file.tell()
        count = len(members)
        file.write(directory + b"PK\x05\x06\0\0\0\0")
        file.write(struct.pack("<HHIIH", count, count, len(directory), start, 0))
    return path
