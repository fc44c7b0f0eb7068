"""Files that lie about sizes take neither memory nor time, and end in one line."""

from __future__ import annotations

import json
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pickles
import pytest
import torch
from hostile_pickles import HERE, WRITERS, name, refusal, text
from hostile_sizes import BOMBS, TEN_GB, entry, header
from pickles import Stored, View
from torch import nn

from lidar_cli.checkpoints.open import open_checkpoint
from lidar_cli.checkpoints.reading.read import read_contents
from lidar_cli.errors import CheckpointError, LidarError

FLOAT = np.arange(6, dtype=np.float32).tobytes()


def tensor_file(write: Callable[..., Path], path: Path, numel: Any, *view: Any) -> Path:
    tree = {"a.weight": View(Stored("0", numel), *view)}
    return write(path, pickles.dumps(tree), {"0": FLOAT})


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("numel", "view", "message"),
    [
        (6, ((7,), (1,)), "reaches past its storage"),
        (6, ((2, 3), (4, 1)), "reaches past its storage"),
        (6, ((6,), (1,), 1), "reaches past its storage"),
        (6, ((1,), (1,), 2**61), "reaches past its storage"),
        (7, ((6,), (1,)), "should have 28 bytes, the file"),
        (10**10, ((6,), (1,)), "should have 40000000000 bytes, the file"),
        (-1, ((6,), (1,)), "impossible size"),
        (True, ((1,), (1,)), "impossible size"),
        (2**64, ((6,), (1,)), "impossible size"),
        (6, ((6,), (-1,), 5), "negative"),
        (6, ((-6,), (1,)), "negative"),
        (6, ((6,), (1,), -1), "negative"),
        (6, ((6.0,), (1,)), "impossible"),
        (6, ((2**70,), (0,)), "impossible"),
        (6, ((0, 2**40, 2**40), (1, 1, 1)), "impossible shape"),
        (6, ((2**40, 2**40), (0, 0)), "impossible shape"),
        (6, ((10**10,), (0,)), "repeats the 24 bytes"),
        (6, ((10**5, 3), (0, 1)), "repeats the 24 bytes"),
        (6, ((1,) * 65, (1,) * 65), "too many dimensions"),
        (6, ((2, 3), (1,)), "2 dimensions has 1 strides"),
        (6, (3, 1), "no shape"),
    ],
)
def test_tensors_that_do_not_fit_their_storage(
    write: Callable[..., Path], numel: Any, view: Any, message: str, tmp_path: Path
) -> None:
    refusal(tensor_file(write, tmp_path / "a.pt", numel, *view), message)


@pytest.mark.parametrize("write", WRITERS)
def test_tensors_that_just_fit(write: Callable[..., Path], tmp_path: Path) -> None:
    """The refusals above are not of everything."""
    for i, (view, expected) in enumerate((
        (((2, 3), (1, 2), 0), [[0, 2, 4], [1, 3, 5]]),
        (((2,), (5,), 0), [0, 5]),
        (((3, 2), (0, 1), 4), [[4, 5]] * 3),
        (((0,), (7,), 6), []),
    )):  # fmt: skip
        path = tensor_file(write, tmp_path / f"{i}.pt", 6, *view)
        assert read_contents(path).tree["a.weight"].materialise().tolist() == expected


def test_many_tensors_over_the_same_bytes_take_no_memory(tmp_path: Path) -> None:
    """Each fits its storage; together they would be a thousand times the file."""
    storage = Stored("0", 2**18)
    tree = {f"{i}.weight": View(storage, (512, 512), (512, 1)) for i in range(1000)}
    path = pickles.write_zip(tmp_path / "a.pt", pickles.dumps(tree), {"0": bytes(2**20)})
    tensors = read_contents(path).tree

    class Wide(nn.Module):
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            meta = torch.empty(512, 512, device="meta")
            return dict.fromkeys(tensors, meta)

    from lidar_cli.checkpoints.models.weights import fill

    with pytest.raises(CheckpointError, match=r"have 1048576000 bytes over 1048576 of the file"):
        fill(Wide(), tensors, "a.pt")


def test_zip_members(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    content = pickles.dumps({"a.weight": View(Stored("0", 2**24), (2**24,), (1,))})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:  # 64 MiB in 65 kB
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/0", bytes(2**26))
    assert path.stat().st_size < 100_000
    refusal(path, "is compressed")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("archive/data.pkl", content)
    refusal(path, "two members")
    for at, value, message in (
        (6, 1, "encrypted"), (18, 10**9, "outside the file"), (22, 10**9, "compressed"),
    ):  # fmt: skip
        pickles.write_zip(path, content)
        changed = bytearray(path.read_bytes())
        entry = changed.index(b"PK\x01\x02") + 2
        changed[entry + at : entry + at + (2 if at == 6 else 4)] = value.to_bytes(
            2 if at == 6 else 4, "little"
        )
        path.write_bytes(changed)
        refusal(path, message)
    pickles.write_zip(path, content)
    changed = bytearray(path.read_bytes())
    changed[changed.index(b"PK\x01\x02") + 10] = zipfile.ZIP_DEFLATED
    path.write_bytes(changed)
    refusal(path, "is compressed")
    pickles.write_zip(path, content)
    changed = bytearray(path.read_bytes())
    where = changed.index(b"PK\x05\x06") + 16  # the directory's place, from which zipfile shifts
    changed[where : where + 4] = (2**32 - 1).to_bytes(4, "little")
    path.write_bytes(changed)
    refusal(path, "outside the file")
    pickles.write_zip(path, content)
    changed = bytearray(path.read_bytes())
    entry = changed.index(b"PK\x01\x02")
    changed[entry + 20 : entry + 28] = (10**9).to_bytes(4, "little") * 2
    path.write_bytes(changed)
    refusal(path, "outside the file")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"}.")
        archive.writestr("archive/byteorder", "big")
    refusal(path, "big-endian")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("something.txt", "else")
    refusal(path, r"without the data\.pkl")


def test_zip_members_that_share_their_bytes(tmp_path: Path) -> None:
    """A hundred names for one member of 1 MB: more than the file in sum."""
    path = pickles.write_zip(tmp_path / "a.pt", b"}.", {"0": bytes(2**20)})
    content = path.read_bytes()
    start = content.index(b"PK\x01\x02")
    end = content.index(b"PK\x05\x06")
    entries = content[start:end].split(b"PK\x01\x02")[1:]
    many = [b"PK\x01\x02" + e for e in entries]
    many += [b"PK\x01\x02" + entries[-1][:-1] + bytes([i]) for i in range(200, 256)]
    tail = struct.pack("<HHHHIIH", 0, 0, len(many), len(many), len(b"".join(many)), start, 0)
    path.write_bytes(content[:start] + b"".join(many) + b"PK\x05\x06" + tail)
    refusal(path, "outside the file")


def legacy(**changes: Any) -> bytes:
    parts = {"magic": 0x1950A86A20F9469CFC6C, "version": 1001, "system": {"little_endian": True}}
    parts |= changes
    return b"".join(pickle.dumps(part, 2) for part in parts.values())


def test_legacy_headers(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    body = pickle.dumps({}, 2) + pickle.dumps([], 2)
    path.write_bytes(legacy() + body)
    assert read_contents(path).tree == {}
    for content, message in (
        (legacy(magic=1), "torch's number"),
        (legacy(magic=float(0x1950A86A20F9469CFC6C)), "torch's number"),
        (legacy(version=1000), "torch's number"),
        (legacy(system={"little_endian": False}), "big-endian"),
        (legacy(system={str(i): i for i in range(5000)}), "ends early"),
    ):
        path.write_bytes(content + body)
        refusal(path, message)
    tree = pickles.dumps({"a": View(Stored("0", 6), (6,), (1,))})
    keys = pickle.dumps(["0"], 2)
    for after, message in (
        (pickle.dumps([], 2), "before 1 of its storages"),
        (pickle.dumps(["0", "0"], 2) + struct.pack("<q", 6) + FLOAT, "one twice"),
        (pickle.dumps(["1"], 2), "nothing uses"),
        (pickle.dumps({"0": 1}, 2), "no list"),
        (keys, "should have 24 bytes"),
        (keys + struct.pack("<q", -6) + FLOAT, "should have 24 bytes"),
        (keys + struct.pack("<q", 5) + FLOAT, "should have 24 bytes"),
        (keys + struct.pack("<q", 7) + FLOAT, "should have 24 bytes"),
        (keys + struct.pack("<q", 2**62) + FLOAT, "should have 24 bytes"),
    ):
        path.write_bytes(legacy() + tree + after)
        refusal(path, message)
    path.write_bytes(b"a" * 257 + b"ustar\0" + bytes(300))
    refusal(path, "tar archive")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header({"a": entry([2], 0, 8)}, FLOAT[:7]), "should have 8 bytes"),
        (header({"a": entry([2], 0, 8)}, FLOAT[:9]), "should end at byte"),
        (header({"a": entry([3], 0, 8)}, FLOAT[:8]), "should have 12 bytes"),
        (header({"a": entry([10**10], 0, 4 * 10**10)}, FLOAT), "should have 40000000000"),
        (header({"a": entry([2**40, 2**40], 0, 8)}, FLOAT), "impossible shape"),
        (header({"a": entry([-2], 8, 0)}, FLOAT), "negative"),
        (header({"a": entry([2.0], 0, 8)}, FLOAT), "impossible"),
        (header({"a": entry([True], 0, 4)}, FLOAT), "impossible"),
        (header({"a": entry([2], -8, 0)}, FLOAT), "negative"),
        (header({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, FLOAT[:12]), "overlap"),
        (header({"a": entry([2], 0, 8), "b": entry([2], 12, 20)}, FLOAT[:20]), "hole"),
        (header({"a": entry([2], 8, 16)}, FLOAT[:16]), "hole"),
        (header({"a": entry([2], 0, 8, "F128")}, FLOAT[:8]), "unknown type"),
        (header({"a": entry([2], 0, 8, ["F32"])}, FLOAT[:8]), "unknown type"),
        (header({"a": {"dtype": "F32", "shape": [2]}}, FLOAT[:8]), "has not the entries"),
        (header({"a": 7}), "has not the entries"),
        (header(b'{"a": 1, "a": 2}'), "not JSON"),
        (header(b"{" + b'"a":[' * 10**5), "not JSON"),
        (header(b'{"a": ' + b"9" * 10**4 + b"}"), "not JSON"),
        (header({}, b"", 10**7), "should have 10000000 bytes"),
        (header(b"{\xff}"), "not JSON"),
    ],
)
def test_safetensors_headers_that_lie(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    refusal(path, f"damaged safetensors file.*{message}")


BOUNDED = """
import json, pathlib, resource, sys
limit = 1 << 30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
from lidar_cli.checkpoints.reading.read import read_contents
from lidar_cli.errors import CheckpointError
from lidar_cli.runtime import sandbox
sandbox.SHARED.limits = sandbox.Limits(seconds=1)
found = []
for path in sys.argv[2:]:
    try:
        read_contents(pathlib.Path(path))
    except CheckpointError as error:
        found.append(str(error))
    else:
        found.append("")
if sys.argv[1] == "naive":
    bytearray(10 << 30)
status = pathlib.Path("/proc/self/status")
memory = int(status.read_text().split("VmHWM:")[1].split()[0]) if status.exists() else 0
print(json.dumps([memory, found]))
"""


def bounded(mode: str, *paths: Path) -> Any:
    command = [sys.executable, "-c", BOUNDED, mode, *map(str, paths)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return json.loads(ended.stdout) if ended.returncode == 0 else ended.stderr


ONLY_MANY = {  # a million empty containers, which need less than a child may take
    "list of lists", "dicts of pairs", "doubling key", "steps", "sets", "lists", "dicts", "memory",
    "encoded",  # of which a stand-in for one long text is left
}  # fmt: skip
MODULE = (
    b"cm\nM\n)\x81}(" + text("_parameters") + b"}" + text("_modules") + b"}q\x01ub"
)  # a module, and the dict of those inside it


def test_declared_sizes_and_bombs_take_neither_memory_nor_time(tmp_path: Path) -> None:
    """The same pickles as legacy files go through the program, in test_hostile_cli."""
    paths = []
    for i, content in enumerate(BOMBS.values()):
        paths.append(pickles.write_zip(tmp_path / f"{i}.pt", content))
    doubling = MODULE + b"q\x02"
    for _ in range(40):  # each holds the one before it twice
        inner = text("a") + b"h\x02" + text("b") + b"h\x02"
        doubling += b"0cm\nM\n)\x81}(" + text("_parameters") + b"}"
        doubling += text("_modules") + b"}(" + inner + b"uubq\x02"
    paths.append(pickles.write_zip(tmp_path / "modules.pt", doubling + b"."))
    circle = MODULE + b"q\x02h\x01" + text("self") + b"h\x02s0."
    paths.append(pickles.write_zip(tmp_path / "circle.pt", circle))
    for i, write in enumerate(WRITERS):
        lie = tensor_file(write, tmp_path / f"{i}.bin", TEN_GB // 4, (TEN_GB // 4,), (1,))
        paths += [lie, tensor_file(write, tmp_path / f"{i}b.bin", 6, (TEN_GB // 4,), (0,))]
    lying = tmp_path / "a.safetensors"
    lying.write_bytes(header({"a": entry([TEN_GB // 4], 0, TEN_GB)}, FLOAT))
    found = bounded("ours", *paths, lying)
    assert isinstance(found, list), found
    memory, errors = found
    opened = [path.name for path, error in zip([*paths, lying], errors, strict=True) if not error]
    names = {list(BOMBS)[int(Path(name).stem)] for name in opened}
    assert names <= ONLY_MANY
    assert all("\n" not in error for error in errors)
    assert memory < 300_000  # kB
    assert "MemoryError" in bounded("naive")


def test_single_bounds_have_lines_of_their_own(tmp_path: Path) -> None:
    """Other limits would stop these later; each is met first where it belongs."""
    path = tmp_path / "a.pt"
    circle = MODULE + b"q\x02h\x01" + text("self") + b"h\x02s0."
    refusal(pickles.write_zip(path, circle), "hold one another without end")
    long = b"\x8b" + struct.pack("<I", 2000) + b"\x01" * 2000 + b"."
    refusal(pickles.write_zip(path, long), "an integer of more than 8192 bits")
    for offset, count in ((4, 3), (0, 7), (-1, 2), (2**62, 1)):
        part = Stored("0", 6)
        part.id = (*part.id, ("v", offset, count))
        tree = {"a": View(part, (1,), (1,))}
        refusal(pickles.write_legacy(path, pickles.dumps(tree), {"0": FLOAT}), "a view ")
    wrapped = b"ctorch._tensor\n_rebuild_from_type_v2\n(" + name("sing") + b"N)NtR."
    value = read_contents(pickles.write_zip(path, wrapped)).tree
    assert value.name == f"{HERE}.sing"


def test_deep_nesting_is_only_deep(tmp_path: Path) -> None:
    """No walk of ours recurses; Python's own unpickler makes such lists as well."""
    depth = 10**5
    content = b"}" + text("model") + b"]" * depth + b"a" * (depth - 1) + b"s."
    path = pickles.write_zip(tmp_path / "a.pt", content)
    with pytest.raises(LidarError):
        open_checkpoint(path)
    content = b"\x80\x02" + b"}" + text("model")
    content += (b"}" + text("model")) * depth + b"N" + b"s" * depth + b"s."
    with pytest.raises(LidarError):
        open_checkpoint(pickles.write_zip(path, content))


def test_a_dag_of_dicts_is_walked_once(tmp_path: Path) -> None:
    """Four levels of a thousand names each for the next: 10^12 paths, five dicts."""
    content = b"}" + text("a.weight") + b"Nsq\x00"
    for _ in range(4):
        names = b"".join(text(f"{i}") + b"h\x00" for i in range(1000))
        content += b"0}(" + names + b"uq\x00"
    with pytest.raises(LidarError):
        open_checkpoint(pickles.write_zip(tmp_path / "a.pt", content + b"."))
