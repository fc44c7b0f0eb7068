"""Reads headers of `.npy` and `.npz` files as JSON; runs only in the limited child process.

Source: the description of both formats in numpy.lib.format. Imports no torch.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, BinaryIO

from lidar_cli.errors import InputError, first_line
from lidar_cli.runtime.files import open_zip

MAGIC = b"\x93NUMPY"
LENGTHS = {1: struct.Struct("<H"), 2: struct.Struct("<I"), 3: struct.Struct("<I")}  # by version
MAX_HEADER = 2**16  # bytes
FLOATS = re.compile(  # the header that numpy.save writes for floating-point numbers
    r"\{'descr': '(<f([248]))', 'fortran_order': (True|False), 'shape': \(([\d, ]{,400})\), \}"
)
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # of numpy.savez and savez_compressed

Record = dict[str, Any]  # of JSON values


def npy(source: BinaryIO, name: str) -> Record:
    """Shape, type, memory order and offset of the numbers of a `.npy` file.

    name: of the file, for messages. Raises InputError if the file is damaged.
    """
    with _input_errors(f"{name}: the .npy header cannot be read"):
        return _header(source)


def npz(source: BinaryIO, name: str) -> dict[str, Record]:
    """Header, position and compression of each array of a `.npz` file, by name.

    {} if the zip file has no arrays. Raises as `npy`.
    """
    with _input_errors(f"{name}: cannot be read as .npz or .pt"):
        return _arrays(source)


@contextmanager
def _input_errors(what: str) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # numpy and zipfile raise many types for malformed files
        raise InputError(f"{what}: {first_line(error)}; copy or save it again") from error


def _arrays(source: BinaryIO) -> dict[str, Record]:
    arrays: dict[str, Record] = {}
    archive, members = open_zip(source)
    with archive:
        for filename, (info, start) in members.items():
            name = filename.removesuffix(".npy")
            if name == filename:
                continue
            if info.compress_type not in METHODS:
                raise ValueError(f"{filename[:60]!a} is compressed by a method that numpy lacks")
            if ".." in name.split("/") or name.startswith("/"):
                raise ValueError(f"{filename[:60]!a} is a path outside of the archive")
            with archive.open(info) as member:
                arrays[name] = _header(member)
            arrays[name] |= {
                "start": start,
                "packed": info.compress_size,
                "size": info.file_size,
                "crc": info.CRC,
                "deflated": info.compress_type == zipfile.ZIP_DEFLATED,
            }
    return arrays


def _header(file: IO[bytes]) -> Record:
    """The header of an array; its numbers begin after "offset" bytes. Raises ValueError."""
    start = file.read(len(MAGIC) + 2)
    length = LENGTHS.get(start[len(MAGIC)]) if len(start) == len(MAGIC) + 2 else None
    if not start.startswith(MAGIC) or length is None:
        raise ValueError("it does not begin as a .npy file")
    (size,) = length.unpack(file.read(length.size).ljust(length.size, b"\0"))
    if size > MAX_HEADER:
        raise ValueError(f"it has {size:,} bytes, at most {MAX_HEADER:,}")
    text = file.read(size)
    record = (len(text) == size and _floats(text)) or _any_array(text, size)
    return record | {"offset": len(start) + length.size + size}


def _floats(text: bytes) -> Record | None:
    """The record of a header exactly as numpy.save writes it, without the time to import numpy."""
    header = text.decode("latin-1").rstrip()
    match = FLOATS.fullmatch(header)
    if match is None:
        return None
    descr, size, fortran, numbers = match.groups()
    shape = tuple(map(int, re.findall(r"\d+", numbers)))
    if f"'shape': {shape}, " not in header:  # such as (3 4), (3), (,) or (03, 4)
        return None
    return {
        "shape": shape,
        "fortran": fortran == "True",
        "dtype": descr,
        "text": None,
        "type": f"float{8 * int(size)}",
    }


def _any_array(text: bytes, size: int) -> Record:
    """The record of a header of `size` bytes, read by numpy. Raises ValueError."""
    import numpy as np

    # Version 3 differs from 2 only in the field names of structured arrays.
    header = io.BytesIO(LENGTHS[2].pack(size) + text)
    shape, fortran, dtype = np.lib.format.read_array_header_2_0(header, max_header_size=MAX_HEADER)
    if not all(type(number) is int and number >= 0 for number in shape):
        raise ValueError(f"shape {str(shape)[:60]}")
    return {
        "shape": shape,
        "fortran": fortran,
        "dtype": dtype.str if dtype.kind == "f" and dtype.itemsize <= 8 else None,
        "text": dtype.str if dtype.kind in "iuUS" and 0 < dtype.itemsize < 10_000 else None,
        "type": str(dtype)[:60],
    }
