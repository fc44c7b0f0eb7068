"""Headers of `.npy` and `.npz` files as plain values: runs in the limited child process, alone.

Source: the description of both formats in numpy.lib.format. Imports no torch.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, BinaryIO

import numpy as np

from lidar_cli.errors import InputError, first_line
from lidar_cli.runtime.files import open_zip

MAGIC = b"\x93NUMPY"
LENGTHS = {1: struct.Struct("<H"), 2: struct.Struct("<I"), 3: struct.Struct("<I")}  # by version
MOST_HEADER = 2**16  # bytes
ENCRYPTED = 0x1  # of a zip member's flags
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # of numpy's two ways to save
LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of the name and of extra fields

Record = dict[str, Any]  # of JSON values


def npy(source: BinaryIO, name: str) -> Record:
    """Shape, type, order and place of the numbers of a `.npy` file.

    name: of the file, for InputError, which is raised if it is damaged.
    """
    with _refusing(f"{name}: the .npy header cannot be read"):
        return _header(source)


def npz(source: BinaryIO, name: str) -> dict[str, Record]:
    """The arrays of a `.npz` file by name, where their bytes lie, and how they are packed.

    Empty if the zip file has no member of that kind. Raises as `npy`.
    """
    with _refusing(f"{name}: cannot be read as .npz or .pt"):
        return _members(source)


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # the parsers of numpy and zipfile raise whatever they meet
        raise InputError(f"{what}: {first_line(error)}; copy or save it again") from error


def _members(source: BinaryIO) -> dict[str, Record]:
    members: dict[str, Record] = {}
    with open_zip(source) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name == info.filename:
                continue
            if info.flag_bits & ENCRYPTED or info.compress_type not in METHODS:
                raise ValueError(f"{info.filename[:60]!a} is packed as numpy packs none")
            if ".." in name.split("/") or name.startswith("/"):
                raise ValueError(f"{info.filename[:60]!a} names a place outside of it")
            if name in members:
                raise ValueError(f"{info.filename[:60]!a} is in it twice")
            with archive.open(info) as member:
                members[name] = _header(member)
            source.seek(info.header_offset)
            _, name_length, extra_length = LOCAL_HEADER.unpack(source.read(LOCAL_HEADER.size))
            members[name] |= {
                "start": info.header_offset + LOCAL_HEADER.size + name_length + extra_length,
                "packed": info.compress_size,
                "size": info.file_size,
                "crc": info.CRC,
                "deflated": info.compress_type == zipfile.ZIP_DEFLATED,
            }
    return members


def _header(file: IO[bytes]) -> Record:
    """The header of an array; its numbers follow after "offset" bytes. Raises ValueError."""
    start = file.read(len(MAGIC) + 2)
    length = LENGTHS.get(start[len(MAGIC)]) if len(start) == len(MAGIC) + 2 else None
    if not start.startswith(MAGIC) or length is None:
        raise ValueError("it begins as no version of the format does")
    (size,) = length.unpack(file.read(length.size).ljust(length.size, b"\0"))
    if size > MOST_HEADER:
        raise ValueError(f"it has {size:,} bytes, at most {MOST_HEADER:,}")
    # Version 3 differs from 2 in the names of a record's fields alone.
    text = io.BytesIO(LENGTHS[2].pack(size) + file.read(size))
    shape, fortran, dtype = np.lib.format.read_array_header_2_0(text, max_header_size=MOST_HEADER)
    if not all(type(number) is int and number >= 0 for number in shape):
        raise ValueError(f"shape {str(shape)[:60]}")
    return {
        "shape": shape,
        "fortran": fortran,
        "dtype": dtype.str if dtype.kind == "f" and dtype.itemsize <= 8 else None,
        "type": str(dtype)[:60],
        "offset": len(start) + length.size + size,
    }
