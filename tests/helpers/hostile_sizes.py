"""Files that would take far more memory than they have bytes."""

from __future__ import annotations

import json
import struct
from typing import Any


def header(entries: Any, data: bytes = b"", length: int | None = None) -> bytes:
    content = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(content) if length is None else length) + content + data


def entry(shape: Any, begin: Any, end: Any, dtype: Any = "F32") -> Any:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


TEN_GB = 10 << 30


BOMBS = {
    "bytes": b"B" + struct.pack("<I", 2**32 - 1),
    "long bytes": b"\x8e" + struct.pack("<Q", TEN_GB),
    "bytearray": b"\x96" + struct.pack("<Q", TEN_GB),
    "text": b"\x8d" + struct.pack("<Q", TEN_GB),
    "frame": b"\x95" + struct.pack("<Q", TEN_GB),
    "integer": b"\x8b" + struct.pack("<I", 2**32 - 1),
    "long text": b"X" + struct.pack("<I", 2**32 - 1),
    "line": b"c" + b"a" * 10**6,
    "decimal": b"I" + b"9" * 10**6 + b"\n.",
    "negative length": b"T" + struct.pack("<i", -5),
    "list of lists": b"](" + b"(l" * 10 + b"lq\x00" + b"cbuiltins\nlist\nq\x01"
    + b"]q\x02(" + b"N" * 10**5 + b"e" + b"h\x01h\x02\x85R" * 10**5 + b".",
    "dicts of pairs": b"]q\x02(" + b"K\x01K\x02\x86" * 10**5 + b"e"
    + b"ccollections\nOrderedDict\nq\x01" + b"h\x01h\x02\x85R" * 10**5 + b".",
    "encoded": b"X" + struct.pack("<I", 10**6) + b"a" * 10**6 + b"q\x02X\x06\0\0\0latin1q\x03"
    + b"c_codecs\nencode\nq\x01" + b"h\x01h\x02h\x03\x86R" * 10**5 + b".",
    "doubling key": b")" + b"2\x86" * 60 + b"}" + b"q\x000" + b"h\x00",
    "hash of a doubling tuple": b"})" + b"2\x86" * 60 + b"K\x01s.",
    "member that doubles": b"\x8f()" + b"2\x86" * 60 + b"\x90.",
    "deep key": b"})" + b"\x85" * 10**5 + b"K\x01s.",
    "colliding integers": b"}(" + b"".join(
        b"\x8a\x10" + (i * (2**61 - 1)).to_bytes(16, "little") + b"N" for i in range(1, 10**5)
    ) + b"u.",
    "steps": b"N0" * 3_000_000 + b".",
    "sets": b"\x8f" * 1_000_000 + b".",
    "lists": b"]" * 1_000_000 + b".",
    "dicts": b"}" * 1_000_000 + b".",
    "marks": b"(" * 1_000_000 + b".",
    "tuples": b")" + b"\x85" * 1_000_000 + b".",
    "memory": b"N" + b"\x94" * 1_000_000 + b".",
}  # fmt: skip
