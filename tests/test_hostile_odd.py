"""Opcodes on values of odd types, and zip directories that lie: one line each, no traceback."""

from __future__ import annotations

import contextlib
import io
import struct
import zipfile
from pathlib import Path

import pytest
from hostile_pickles import WRITERS, beside, text, within

from lidar_cli.checkpoints.open import open_checkpoint
from lidar_cli.checkpoints.reading.read import read_contents
from lidar_cli.errors import CheckpointError, LidarError

FLOATS = b"ctorch\nFloatStorage\n"
DTYPE = b"cnumpy\ndtype\n" + text("f4") + b"\x85R"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n)R"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
BIG = b"\x8a\x09" + (2**63).to_bytes(9, "little")
ODD = {
    "extension 0": b"\x82\x00",
    "negative extension": b"\x84\xff\xff\xff\xff",
    "instance without a mark": b"cm\nC\n0im\nC\n",
    "object of nothing": b"(o",
    "object of a number": b"(K\x01o",
    "name of numbers": b"K\x01K\x02\x93",
    "name of bytes": b"C\x02osC\x06system\x93",
    "name of nothing": b"NN\x93",
    "name of lists": b"]]\x93",
    "name with a line's end": text("a\nb") + text("c\x1b[2J") + b"\x93",
    "name with a surrogate": text("a") + b"X\x03\0\0\0\xed\xa0\x80\x93",
    "state of a dict": b"}}b",
    "state of a list": b"]K\x01b",
    "state of a tuple": b")}b",
    "state of a name": b"ca\nb\n}b",
    "state of itself": b"ca\nb\n)\x81q\x00h\x00b",
    "state of a numpy type": DTYPE + b")b",
    "state of an array": ARRAY + b"(K\x01K\x00\x85NNNtb",
    "negative array": ARRAY + b"(K\x01J\xff\xff\xff\xff\x85" + DTYPE + b"\x89C\x04abcdtb",
    "array without measure": ARRAY + b"(K\x01" + BIG + BIG + b"\x86" + DTYPE + b"\x89C\x00tb",
    "persistent nothing": b"NQ",
    "persistent dict": b"}Q",
    "persistent line": b"Pstorage\n",
    "persistent key": b"(" + text("storage") + FLOATS + b"}" + text("cpu") + b"K\x01tQ",
    "persistent kind": b"(" + text("storage") + b"]" + text("0") + text("cpu") + b"K\x01tQ",
    "persistent view": b"(" + text("storage") + FLOATS + text("0") + text("cpu") + b"K\x01K\x05tQ",
    "persistent module": b"(" + text("module") + b"}NNtQ",
    "next buffer": b"\x97",
    "buffer for reading": b"\x98",
    "negative memo": b"Np-1\ng-1\n",
    "memo that is not there": b"h\x63",
    "memo of a long number": b"Np" + b"9" * 3000 + b"\n",
    "not a number as a key": b"}(F nan\nNF nan\nNu",
    "underscored number": b"I1_0\n",
    "complex of text": b"cbuiltins\ncomplex\n" + text("1") + text("x") + b"\x86R",
    "complex beyond floats": b"cbuiltins\ncomplex\n\x8a\xff" + b"\x7f" * 255 + b"\x85R",
    "bytes of a number": b"cbuiltins\nbytes\n" + BIG + b"\x85R",
    "call with a list": b"ca\nb\n]R",
    "call of text": text("x") + b")R",
    "reconstructor of numbers": b"ccopyreg\n_reconstructor\nK\x01K\x02K\x03\x87R",
    "mapping of itself": b"ccollections\nOrderedDict\n]q\x00h\x00ah\x00\x85R",
    "half a letter": b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n" + text("U3")
    + b"\x85RC\x05abcde\x86R",
    "tensor of nothing": TENSOR + b")R",
    "tensor of text": TENSOR + b"(" + text("a") + b"K\x00))tR",
    "sparse nothing": b"ctorch._utils\n_rebuild_sparse_tensor\nNN\x86R",
    "type of itself": b"ctorch._tensor\n_rebuild_from_type_v2\n" * 2 + b"N)\x87R",
    "size of a list": b"ctorch\nSize\n(K\x01]t\x85R",
    "namespace of itself": b"cargparse\nNamespace\n)\x81q\x00}" + text("a") + b"h\x00sb",
    "module of lists": b"cm\nM\n)\x81}(" + text("_parameters") + b"]" + text("_modules") + b"Nub",
    "unknown opcode": b"\xff",
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_odd_operands(odd: str, tmp_path: Path) -> None:
    for write in WRITERS:
        for placed in (beside, within):
            path = write(tmp_path / "a.pt", placed(ODD[odd]))
            with contextlib.suppress(CheckpointError):
                repr(read_contents(path))
            with pytest.raises(LidarError) as caught:
                open_checkpoint(path)
            assert str(caught.value).isprintable()


def archive(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name in names:
            made.writestr(name, b"}.")
    return file.getvalue()


def with_zip64(count: int, size: int, start: int) -> bytes:
    """A directory that says so in the records for large archives."""
    plain = archive("archive/data.pkl")
    end = plain.index(b"PK\x05\x06")
    record = b"PK\x06\x06"
    record += struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, size, start)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, end, 1)
    most = struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return plain[:end] + record + locator + b"PK\x05\x06" + most


def test_zip_directories_that_lie(tmp_path: Path) -> None:
    plain = archive("archive/data.pkl")
    start, end = plain.index(b"PK\x01\x02"), plain.index(b"PK\x05\x06")
    path = tmp_path / "a.pt"
    for honest in (
        plain,
        plain + b"bytes behind it",
        plain[:-2] + struct.pack("<H", 5) + b"hello",
        b"PK\x03\x04" + bytes(30) + plain,
        with_zip64(1, end - start, start),
    ):
        path.write_bytes(honest)
        assert read_contents(path).tree == {}
    for lie in (
        with_zip64(2**60, 2**60, 2**62),
        with_zip64(1, end - start, 2**63),
        with_zip64(1, 2**64 - 1, start),
        archive("archive/data.pkl", "archive/data.pklXX").replace(b"pklXX", b"pkl\0X"),
        archive("archive/data.pkl", "other/data.pkl"),
        archive("../../archive/data.pkl"),
        archive("archive/data.pkl/"),
        plain.replace(b"archive/data.pkl", b"archive\\data.pkl"),
    ):
        path.write_bytes(lie)
        with pytest.raises(CheckpointError) as caught:
            read_contents(path)
        assert str(caught.value).isprintable()
