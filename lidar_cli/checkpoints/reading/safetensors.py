"""Reads the header of a safetensors file, and checks it against the file size.

    8 bytes   length of the header, little-endian
    header    JSON: name -> {"dtype", "shape", "data_offsets": [begin, end]}, and "__metadata__"
    the rest  the numbers, row-major, little-endian; offsets count from here, without gaps
Source: the format's description in the safetensors documentation.
"""

from __future__ import annotations

import json
import math
from typing import Any, BinaryIO

from lidar_cli.checkpoints.reading.lazy_tensor import (
    BY_SAFETENSORS,
    ITEMSIZE,
    MAX_NUMBER,
    UNSET_PATH,
    LazyTensor,
    Malformed,
    Source,
    Storage,
    checked_sizes,
)

MAX_HEADER = 10_000_000  # bytes; the format allows 100 MB, which no existing model needs


def read_safetensors(file: BinaryIO) -> dict[str, LazyTensor]:
    """The tensors of a file by name; raises Malformed if the header is wrong for the file."""
    end = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    begin = 8 + length
    if begin > end:
        raise Malformed(f"its header should have {length} bytes, the file has {end}")
    if length > MAX_HEADER:
        raise Malformed(f"its header has {length} bytes; at most {MAX_HEADER} are read")
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
