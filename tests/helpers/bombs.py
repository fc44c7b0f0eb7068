"""Small checkpoint files that cost far more memory or time than they have bytes."""

from __future__ import annotations

import io
import itertools
import json
import struct
import zipfile
from pathlib import Path

import pickles
from hostile_pickles import text

P = b"\x80\x02"
MB = 10**6
MANY = 600_000
STORED = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x04"


def bombs(folder: Path) -> list[Path]:
    """One file of each kind; a sound reader needs little of any machine for the line about it."""
    folder.mkdir(exist_ok=True)
    for name, content in {**_pickles(), "collide": _colliding_tuples(20_000)}.items():
        storages = {"0": bytes(16)} if "dtype" in name else None
        pickles.write_zip(folder / f"{name}.pt", P + content + b".", storages)
    view = STORED + b"h\x3cK\x00K\x01\x87tQ."
    pickles.write_legacy(folder / "laughs-view.pth", P + _laughs(60) + b"0" + view)
    _headers(folder)
    return sorted(folder.iterdir())


def _pickles() -> dict[str, bytes]:
    big = text("a" * MB) + b"q\x00"
    copied = b"q\x01B" + struct.pack("<I", MB) + b"a" * MB + b"\x85q\x02" + b"h\x01h\x02R" * 3500
    arrays = b"cnumpy.core.multiarray\n_reconstruct\nq\x01)q\x02](" + b"h\x01h\x02R" * MANY + b"e"
    tensor = b"ctorch._utils\n_rebuild_tensor_v3\n(" + STORED + b"tQK\x00K\x04\x85K\x01\x85\x89}"
    dtype = _laughs(60) + b"0}" + text("a.weight") + tensor + b"h\x3ctRs"
    numbers = b"".join(
        b"h\x01G"
        + struct.pack(">d", -1000003.0 * k)
        + b"G"
        + struct.pack(">d", float(k))
        + b"\x86RN"
        for k in range(1, 5001)
    )
    return {
        "device-join": b"ctorch\ndevice\n(" + big + b"h\x00" * MB + b"tR",
        "bytearray-copies": b"](cbuiltins\nbytearray\n" + copied + b"e",
        "laughs-dtype": dtype,
        "deep-key": b"})" + b"\x85" * 990 + b"Ns",
        "collide-complex": b"cbuiltins\ncomplex\nq\x010}(" + numbers + b"u",
        "arrays": arrays,
        "standins": b"ca\nb\nq\x01)q\x02](" + b"h\x01h\x02R" * MANY + b"e",
        "sets": text("a" * 20 * MB) + b"0](" + b"\x8f" * 2_000_000 + b"e",
        "hash": b"})" + b"2\x86" * 60 + b"K\x01s",
        "memo": b"Nr" + struct.pack("<I", 2**32 - 1),
        "recursion": b"})" + b"\x85" * 10**6 + b"Ns",
    }


def _laughs(levels: int) -> bytes:
    """A list of the same list twice, so many levels deep."""
    body = b"]q\x00"
    for i in range(levels):
        body += b"0](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1])
    return body


def _colliding_tuples(count: int) -> bytes:
    """A dict whose keys have one hash: hash(-1) is hash(-2)."""
    body = bytearray(b"}q\x00")
    halves = list(itertools.product((-1, -2), repeat=10))
    for place, half in enumerate(halves, 1):
        body += b"(" + b"".join(b"J" + struct.pack("<i", n) for n in half)
        body += b"tr" + struct.pack("<I", place) + b"0"
    body += b"("
    pairs = itertools.product(range(1, len(halves) + 1), repeat=2)
    for a, c in itertools.islice(pairs, count):
        body += b"j" + struct.pack("<I", a) + b"j" + struct.pack("<I", c) + b"\x86N"
    return bytes(body + b"u")


def _headers(folder: Path) -> None:
    lists = b'{"__metadata__":[' + b"[]," * 4 * MB + b"[]]}"
    (folder / "json.safetensors").write_bytes(struct.pack("<Q", len(lists)) + lists)
    deep = json.dumps({"a": 1}).encode()[:-1] + b',"b":' + b"[" * MB
    (folder / "deep.safetensors").write_bytes(struct.pack("<Q", len(deep)) + deep)
    for name, head, size in (
        ("length.safetensors", struct.pack("<Q", (1 << 40) - 8) + b"{", 1 << 40),
        ("bytes.pth", pickles.LEGACY_HEADER + P + b"\x8e" + struct.pack("<Q", 1 << 40), 1 << 41),
    ):
        with (folder / name).open("wb") as file:  # a hole in the file backs the length
            file.write(head)
            file.truncate(size)
    (folder / "entries.pt").write_bytes(_zip_of(400_000))
    with (folder / "directory.pt").open("wb") as file:
        file.write(b"PK\x03\x04")
        file.seek(4 + (3 << 30))
        file.write(b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, 3 << 30, 4, 0))
    with zipfile.ZipFile(folder / "deflated.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"}.")
        archive.writestr("archive/data/0", bytes(64 * MB))


def _zip_of(entries: int) -> bytes:
    """A zip with a directory of so many entries, all of no bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"}.")
    start = buffer.getvalue().index(b"PK\x01\x02")
    first = buffer.getvalue()[start : buffer.getvalue().index(b"PK\x05\x06")]
    fields = struct.pack("<HHHHHHIII", 20, 20, 0, 0, 0, 0, 0, 0, 0)
    directory = first + b"".join(
        b"PK\x01\x02" + fields + struct.pack("<HHHHHII", 5, 0, 0, 0, 0, 0, 0) + b"%05x" % i
        for i in range(entries)
    )
    count, size = entries + 1, len(directory)
    record = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, size, start)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, start + size, 1)
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)
    return buffer.getvalue()[:start] + directory + record + locator + end
