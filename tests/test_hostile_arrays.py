"""Array files whose headers ask for memory or time: `score` refuses each in one line, at once."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pickles
import pytest
from make import environment

import lidar_cli.features.arrays
from lidar_cli.errors import InputError
from lidar_cli.runtime.sandbox import SHARED, Limits
from lidar_cli.scoring.open import open_embeddings
from lidar_cli.scoring.run import score_file
from lidar_cli.settings import ScoreSettings

TB = 2**40
EXPRESSIONS = {
    "minus": b"-" * 9000 + b"1",
    "parenthesis": b"(" * 9000,
    "tilde": b"~" * 9000 + b"1",
    "plus": b"1" + b"+1" * 4000,
    "table": b"{1:" * 3000,
}


def header(shape: object, dtype: object = "<f4") -> bytes:
    text = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode().ljust(118)
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def packed(content: bytes, declared: int | None = None, size: int = 0) -> bytes:
    """A `.npz` of one member, which is followed by zeros; `declared` bytes, says the directory."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.npy", "w") as a,
    ):
        a.write(content)
        a.write(bytes(size))
    found = bytearray(out.getvalue())
    if declared is not None:
        at = found.rindex(b"PK\x01\x02") + 24
        found[at : at + 4] = struct.pack("<I", declared)
    return bytes(found)


def safetensors(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


OVERLAPPING = b"""{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},
"b":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"""
TWICE = b"""{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},
"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"""

SMALL: dict[str, tuple[bytes, str]] = {
    **{
        f"npy, {what}": (
            b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text)) + text,
            "(cannot be read|nested too deeply|takes more than)",
        )
        for what, text in EXPRESSIONS.items()
    },
    "npy, a long header": (
        b"\x93NUMPY\x03\x00" + struct.pack("<I", 2**16 + 1) + b" " * 2**17,
        "it has 65,537 bytes, at most 65,536",
    ),
    "npy, negative": (header((-4, 3)) + bytes(48), r"shape \(-4, 3\)"),
    "npy, a truth": (header((True, 3)) + bytes(48), r"shape \(True, 3\)"),
    "npy, without measure": (header((10**30, 0)) + bytes(48), "makes no sense"),
    "npy, 70 axes": (header((1,) * 70) + bytes(48), "makes no sense"),
    "npy, text": (header((4, 3), "<U4") + bytes(480), "numbers are <U4; expected float16"),
    "npy, an array in each": (header((4, 3), ("<f4", (1000,) * 4)) + bytes(480), "cannot be read"),
    "npy, escapes": (header((4, 3), [("\x1b[31m\n", "<f4")]) + bytes(480), "numbers are"),
    "npz, huge": (packed(header((10**12, 3)), size=100), "its array 12,000,000,000,128"),
    "npz, says less than it unpacks to": (
        packed(header((2**18, 10)), declared=200, size=2**20),
        "(checksum|CRC)",
    ),
    "npz, objects": (packed(header((4, 3), "|O") + b"cos\ngetpid\n)R."), "found no array"),
    "npz, a place outside": (
        packed(header((4, 3)), size=48).replace(b"a.npy", b"/.npy"),
        "is a path outside",
    ),
    "npz without a directory": (
        packed(header((4, 3)), size=48)[:-22] + bytes(22),
        "cannot be read as .npz or .pt",
    ),
    "zip, a long directory": (
        packed(header((4, 3)), size=48)[:-22]
        + bytes(17 << 20)
        + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, 17 << 20, 100, 0),
        "its zip directory has more than 16 MB",
    ),
    "safetensors, lists": (
        safetensors(b'{"__metadata__":[' + b"[]," * 4_000_000 + b"[]]}"),
        "at most 10000000 are read",
    ),
    "safetensors, overlapping": (safetensors(OVERLAPPING) + bytes(16), "overlap"),
    "safetensors, twice": (safetensors(TWICE) + bytes(16), "not JSON"),
}


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SHARED, "limits", Limits(seconds=2))


def read(path: Path) -> None:
    for embeddings in open_embeddings(path, ScoreSettings()):
        list(embeddings.chunks(2**20))


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert line.isprintable()
    assert len(line) < 1000
    return line


@pytest.mark.parametrize("name", SMALL)
def test_a_hostile_header_is_one_line(name: str, tmp_path: Path) -> None:
    content, words = SMALL[name]
    (tmp_path / "a").write_bytes(content)
    assert re.search(words, refusal(tmp_path / "a"))


def sparse(path: Path, content: bytes, size: int) -> Path:
    path.write_bytes(content)
    os.truncate(path, size)
    return path


def test_holes_are_no_embeddings(tmp_path: Path) -> None:
    """A terabyte that was never written; whatever its format, nothing reads it."""
    deflated = packed(header((4, 3)), size=48)
    for at, content in enumerate((header((2**35, 8)), deflated, safetensors(b"{"), b"\x80\x02")):
        assert "were ever written" in refusal(sparse(tmp_path / str(at), content, TB))
    with h5py.File(tmp_path / "z.h5", "w") as file:
        file.create_dataset("z", (1,), np.float32)
    sparse(tmp_path / "z.h5", (tmp_path / "z.h5").read_bytes(), TB)
    assert "were ever written" in refusal(tmp_path / "z.h5")


def test_holes_are_counted_as_far_as_anyone_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lidar_cli.features.arrays, "MAX_EXTENTS", 4)
    path = sparse(tmp_path / "a.npy", header((2**27, 8)), 128 + 2**32)
    with path.open("r+b") as file:
        for at in range(8):
            file.seek(at << 28)
            file.write(b"x" * 2**16)
    assert "were ever written" in refusal(path)


def test_a_file_with_some_holes_is_read(tmp_path: Path) -> None:
    """One byte in a hundred was written: rows of zeros are odd, but somebody may have them."""
    size = 2**27
    path = sparse(tmp_path / "a.npy", header((size // 32, 8)), 128 + size)
    with path.open("r+b") as file:
        file.seek(2**20)
        file.write(b"x" * (size // 100))
    lidar_cli.features.arrays.check_not_sparse(path)


def test_a_file_system_that_knows_no_holes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    path = sparse(tmp_path / "a.npy", header((2**35, 8)), TB)
    monkeypatch.setattr(os, "lseek", refused)
    lidar_cli.features.arrays.check_not_sparse(path)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((2, 2**20), r"not enough memory for moments of d = 1,048,576: 16,384\.0 GB"),
        ((2, 2**38, 4), "not enough memory for a single sample: 2,048.0 GB"),
    ],
)
def test_a_row_beyond_memory_is_refused_before_it_is_read(
    shape: tuple[int, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 128 + 2 * int(np.prod(shape, dtype=object))
    path = sparse(tmp_path / "a.npy", header(shape, "<f2"), size)

    def unread(*_: object) -> np.ndarray:
        raise AssertionError("a row was read")

    monkeypatch.setattr(lidar_cli.features.arrays, "read_at", unread)
    # The holes of the file are not what this test is about.
    monkeypatch.setattr(lidar_cli.features.arrays, "HARMLESS", size)
    with pytest.raises(InputError, match=words):  # nqd: no rows are read to recognise the axes
        score_file(path, ScoreSettings(device="cpu", axes="nqd"))


def test_a_long_reading_is_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", np.ones((4, 3), np.float32))
    monkeypatch.setattr(lidar_cli.features.arrays, "LONG", 48)
    (found,) = open_embeddings(tmp_path / "a.npy", ScoreSettings())
    assert found.note == f"{tmp_path / 'a.npy'}: 0 GB to be read"
    monkeypatch.setattr(lidar_cli.features.arrays, "LONG", 49)
    (found,) = open_embeddings(tmp_path / "a.npy", ScoreSettings())
    assert found.note is None


def test_a_deflated_tensor_is_refused(tmp_path: Path) -> None:
    content = pickles.dumps({"z": pickles.View(pickles.Stored("0", 16), (4, 4), (4, 1))})
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/0", bytes(64))
    assert "is compressed, which torch.save never does" in refusal(tmp_path / "a.pt")


PROGRAM = """
import resource, sys
from lidar_cli.runtime.sandbox import SHARED, Limits
from lidar_cli.__main__ import main
SHARED.limits = Limits(seconds=2)
resource.setrlimit(resource.RLIMIT_DATA, (3 << 29, 3 << 29))
main()
"""


def test_the_program_scores_what_is_sound_among_them(tmp_path: Path) -> None:
    paths = []
    for at, (content, _) in enumerate(SMALL.values()):
        paths.append(tmp_path / f"{at}.npy")
        paths[-1].write_bytes(content)
    paths.append(sparse(tmp_path / "sparse.npy", header((2**35, 8)), TB))
    np.save(tmp_path / "sound.npy", np.random.default_rng(0).normal(size=(20, 3, 4)))
    command = [sys.executable, "-c", PROGRAM, "score", *map(str, paths), "--json", "--device"]
    ended = subprocess.run(
        [*command, "cpu", str(tmp_path / "sound.npy")],
        capture_output=True,
        text=True,
        timeout=100,
        env=environment(),
        cwd=tmp_path,
    )
    assert ended.returncode == 3, ended.stderr
    assert [one["file"] for one in json.loads(ended.stdout)] == [str(tmp_path / "sound.npy")]
    for path, line in zip(paths, ended.stderr.splitlines(), strict=True):
        assert line.startswith(f"error: {path}: ")
