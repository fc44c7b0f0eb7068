"""Files made to do harm end in one line or in inert stand-ins; nothing in them runs.

Each attack is first shown to work on an unpickler that calls what a file names.
"""

from __future__ import annotations

import contextlib
import copyreg
import functools
import itertools
import json
import operator
import os
import pickle
import random
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pickles
import pytest
import torch
from mutations import mutated, tensors_in
from pickles import Stored, View
from safetensors.torch import save_file
from torch import Tensor, nn

from lidar_cli.checkpoints import open_checkpoint
from lidar_cli.checkpoints.lazy import Malformed
from lidar_cli.checkpoints.read import read_contents
from lidar_cli.checkpoints.recognise import recognise
from lidar_cli.checkpoints.standins import Budget, Forbidden
from lidar_cli.checkpoints.unpickle import OPCODES, Unpickler
from lidar_cli.errors import CheckpointError, LidarError

HERE = __name__
WRITERS = [pickles.write_zip, pickles.write_legacy]


def refusal(path: Path, match: str = "") -> str:
    with pytest.raises(CheckpointError, match=match) as caught:
        read_contents(path)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 1000
    return text


# What would write the canary, were it called.

CANARY: list[Path] = []


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    CANARY[:] = [tmp_path / "canary"]
    yield CANARY[0]
    CANARY.clear()


def sing(*args: Any, **kwargs: Any) -> Any:
    CANARY[0].touch()
    return {}


class Box:
    """A name within a name."""

    sing = staticmethod(sing)


class Made:
    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        sing()
        return super().__new__(cls)


class Begun:
    def __init__(self, *args: Any) -> None:
        sing()


class Told:
    def __setstate__(self, state: Any) -> None:
        sing()


class Slotted:
    def __setattr__(self, name: str, value: Any) -> None:
        sing()


class Filled:
    def append(self, value: Any) -> None:
        sing()

    def add(self, value: Any) -> None:
        sing()

    def __setitem__(self, key: Any, value: Any) -> None:
        sing()


class Hashed:
    def __hash__(self) -> int:
        sing()
        return 1


def name(what: str) -> bytes:
    return f"c{HERE}\n{what}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


NESTED = text(HERE) + text("Box.sing") + b"\x93"
ATTACKS = {
    "reduce": name("sing") + b")R",
    "new object": name("Made") + b")\x81",
    "new object with names": name("Made") + b")}\x92",
    "new object by copyreg": b"ccopyreg\n__newobj__\n" + name("Made") + b"\x85R",
    "new object by copyreg with names": b"ccopyreg\n__newobj_ex__\n" + name("Made") + b")}\x87R",
    "instance": f"(i{HERE}\nMade\n".encode(),
    "instance with arguments": b"(K\x01" + f"i{HERE}\nBegun\n".encode(),
    "object": b"(" + name("Made") + b"o",
    "object with arguments": b"(" + name("Begun") + b"K\x01o",
    "set state": name("Told") + b")\x81}b",
    "set attributes": name("Slotted") + b")\x81N}" + text("a") + b"K\x01s\x86b",
    "append": name("Filled") + b")\x81K\x01a",
    "appends": name("Filled") + b")\x81(K\x01e",
    "set item": name("Filled") + b")\x81K\x01K\x02s",
    "set items": name("Filled") + b")\x81(K\x01K\x02u",
    "add items": name("Filled") + b")\x81(K\x01\x90",
    "key": b"}" + name("Hashed") + b")\x81K\x01s",
    "member": b"\x8f(" + name("Hashed") + b")\x81\x90",
    "nested name": NESTED + b")R",
    "by a partial": b"cfunctools\npartial\n" + name("sing") + b"\x85R)R",
    "by an attribute": b"coperator\nmethodcaller\n" + text("sing") + b"\x85R" + name("Box")
    + b"\x85R",
    "by a map": b"cbuiltins\nlist\ncbuiltins\nmap\n" + name("sing") + b"]K\x01a\x86R\x85R",
    "by a default": b"cbuiltins\nlist\ncbuiltins\niter\n" + name("sing") + b"}\x86R\x85R",
    "reconstructor": b"ccopyreg\n_reconstructor\n" + name("Begun") * 2 + b"}\x87R",
    "memoised": name("sing") + b"q\x000h\x00)R",
    "extension": b"\x82\xf0)R",
    "by torch": b"ctorch._tensor\n_rebuild_from_type\n(" + name("sing")
    + b"ctorch\nTensor\n)}tR",
    "by torch 2": b"ctorch._tensor\n_rebuild_from_type_v2\n(" + name("sing")
    + b"cbuiltins\ndict\n)}tR",
    "inside bytes": b"cpickle\nloads\nC" + bytes([len(name("sing")) + 3]) + name("sing")
    + b")R." + b"\x85R",
}  # fmt: skip


@pytest.fixture
def extension() -> Iterator[None]:
    copyreg.add_extension(HERE, "sing", 0xF0)
    yield
    copyreg.remove_extension(HERE, "sing", 0xF0)
    copyreg.clear_extension_cache()


def beside(attack: bytes) -> bytes:
    """In a dict, as the value of a name."""
    return b"\x80\x04}" + text("weight") + attack + b"s."


def within(attack: bytes) -> bytes:
    """In a whole module, as one of its parameters."""
    state = text("_parameters") + b"}" + text("weight") + attack + b"s" + text("_modules") + b"}"
    return b"\x80\x04ctorch.nn.modules.module\nModule\n)\x81}(" + state + b"ub."


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("placed", [beside, within])
@pytest.mark.parametrize("write", WRITERS)
def test_nothing_is_called(
    attack: str, placed: Callable[[bytes], bytes], write: Callable[..., Path], canary: Path
) -> None:
    path = write(canary.with_name("a.pt"), placed(ATTACKS[attack]))
    with contextlib.suppress(LidarError):
        repr(read_contents(path))
    with pytest.raises(LidarError) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert not canary.exists()
    with contextlib.suppress(AttributeError, TypeError, ValueError, RuntimeError, EOFError):
        torch.load(path, weights_only=False)  # names are called, and it fails after that or not
    assert canary.exists()


def test_persistent_ids_and_header_pickles_call_nothing(canary: Path) -> None:
    path = canary.with_name("a.pt")
    evil = b"\x80\x02" + name("sing") + b")R."
    path.write_bytes(evil + pickles.LEGACY_HEADER + pickle.dumps({}) + pickle.dumps([]))
    refusal(path, "not a torch file")
    path.write_bytes(pickles.LEGACY_HEADER + pickle.dumps({}, 2) + evil)
    refusal(path, "no list of its storages")
    pickles.write_zip(path, b"\x80\x02" + name("sing") + b")RQ.")
    refusal(path, "refers to something")
    assert not canary.exists()


class Command:
    """A pickle that runs a command through a name that is refused by name."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_a_command_is_not_run(layout: str, canary: Path) -> None:
    tree = {"weight": torch.ones(1), "x": Command(os.system, f"touch {canary}")}
    path = canary.with_name("a.pt")
    torch.save(tree, path, _use_new_zipfile_serialization=layout == "zip")
    refusal(path, rf"{os.name}.system.*never called")
    assert not canary.exists()
    torch.load(path, weights_only=False)
    assert canary.exists()


REFUSED = [
    *(("os", n) for n in ("system", "popen", "path.join")), ("os.path", "join"),
    ("posix", "system"), ("nt", "system"), ("sys", "exit"), ("subprocess", "Popen"),
    ("commands", "getoutput"), ("shutil", "rmtree"), ("socket", "create_connection"),
    ("importlib", "import_module"), ("importlib.util", "x"), ("runpy", "run_path"),
    *((m, n) for m in ("builtins", "__builtin__")
      for n in ("eval", "exec", "compile", "open", "__import__", "getattr")),
    ("builtins", "eval.__call__"), ("io", "open"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "function"), REFUSED)
def test_names_that_only_harm_are_refused_and_named(
    module: str, function: str, tmp_path: Path
) -> None:
    for i, spelled in enumerate((
        f"c{module}\n{function}\n".encode(),
        text(module) + text(function) + b"\x93",
        f"(i{module}\n{function}\n".encode(),
    )):  # fmt: skip
        path = tmp_path / f"{i}.pt"
        today = {"__builtin__": "builtins", "io": "builtins", "commands": "subprocess"}
        for write, placed in itertools.product(WRITERS, (beside, within)):
            write(path, placed(spelled))
            refusal(path, f"{today.get(module, module)}.{function}")


SCHEDULE = b"ctorch.optim.lr_scheduler\nCosineAnnealingLR\n)\x81"
GETATTR = b"cbuiltins\ngetattr\n"


def test_a_bound_method_is_the_one_use_of_getattr(tmp_path: Path) -> None:
    """As in schedules of honest files: of an object, by a public name; all others are refused."""
    method = GETATTR + SCHEDULE + text("get_lr") + b"\x86R"
    for write, placed in itertools.product(WRITERS, (beside, within)):
        found = read_contents(write(tmp_path / "a.pt", placed(method)))
        assert "builtins.getattr" in found.stand_ins
        for other in (
            GETATTR + name("Box") + text("sing") + b"\x86R",
            GETATTR + SCHEDULE + text("__class__") + b"\x86R",
            GETATTR + SCHEDULE + text("a.b") + b"\x86R",
            GETATTR + SCHEDULE + b"K\x01\x86R",
            GETATTR + SCHEDULE + text("get_lr") + b"N\x87R",
            GETATTR + SCHEDULE + text("get_lr") + b"\x86}\x92",
            GETATTR + GETATTR + text("get_lr") + b"\x86R",
            b"(" + SCHEDULE + text("_x") + b"ibuiltins\ngetattr\n",
            GETATTR,
        ):
            refusal(write(tmp_path / "b.pt", placed(other)), "names builtins.getattr, which")


def test_safety_does_not_rest_on_the_list(canary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lidar_cli.checkpoints import standins

    monkeypatch.setattr(standins, "REFUSED_MODULES", frozenset())
    monkeypatch.setattr(standins, "REFUSED_BUILTINS", frozenset())
    commands = [
        Command(os.system, f"touch {canary}"),
        Command(eval, f"open({str(canary)!r}, 'w')"),
        Command(open, str(canary), "w"),
        Command(getattr, Box, "sing"),
        Command(subprocess.getoutput, f"touch {canary}"),
    ]
    path = pickles.write_zip(canary.with_name("a.pt"), pickles.dumps(commands))
    assert len(read_contents(path).tree) == 5
    assert {"builtins.eval", "builtins.getattr"} <= set(read_contents(path).stand_ins)
    assert not canary.exists()


def test_there_is_no_way_to_switch_it_off() -> None:
    """Nothing in the package loads a checkpoint by another unpickler."""
    import lidar_cli.checkpoints

    room = Path(lidar_cli.checkpoints.__file__).parent
    for path in room.glob("*.py"):
        source = path.read_text()
        for word in ("pickle.load", "torch.load", "import pickle", "find_class", "safe_globals"):
            assert word not in source.replace("overriding its `find_class`", ""), (path, word)


# Lies about sizes.

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

    from lidar_cli.checkpoints.weights import fill

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
        (6, 1, "encrypted"), (18, 10**9, "compressed"), (22, 10**9, "compressed"),
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


def header(entries: Any, data: bytes = b"", length: int | None = None) -> bytes:
    content = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(content) if length is None else length) + content + data


def entry(shape: Any, begin: Any, end: Any, dtype: Any = "F32") -> Any:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


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
from lidar_cli.checkpoints import read_contents
from lidar_cli.errors import CheckpointError
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
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return json.loads(ended.stdout) if ended.returncode == 0 else ended.stderr


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
MODULE = (
    b"cm\nM\n)\x81}(" + text("_parameters") + b"}" + text("_modules") + b"}q\x01ub"
)  # a module, and the dict of those inside it


def test_declared_sizes_and_bombs_take_neither_memory_nor_time(tmp_path: Path) -> None:
    paths = []
    for i, content in enumerate(BOMBS.values()):
        paths.append(pickles.write_zip(tmp_path / f"{i}.pt", content))
        paths.append(pickles.write_legacy(tmp_path / f"{i}.pth", content))
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
    doubled = list(BOMBS).index("doubling key")
    assert set(opened) <= {f"{doubled}.pt", f"{doubled}.pth"}  # ends early in one of two ways
    assert all("\n" not in error for error in errors)
    assert memory < 300_000  # kB
    assert "MemoryError" in bounded("naive")


def test_single_bounds_have_lines_of_their_own(tmp_path: Path) -> None:
    """Other limits would stop these later; each is met first where it belongs."""
    path = tmp_path / "a.pt"
    circle = MODULE + b"q\x02h\x01" + text("self") + b"h\x02s0."
    refusal(pickles.write_zip(path, circle), "hold one another without end")
    long = b"\x8b" + struct.pack("<I", 2000) + b"\x01" * 2000 + b"."
    refusal(pickles.write_zip(path, long), "an integer without measure")
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


# Mutations.


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.bn1 = nn.BatchNorm2d(4)


def state() -> dict[str, Tensor]:
    tensors = {"conv1.weight": torch.randn(4, 3, 3, 3), "layer1.0.conv1.weight": torch.ones(4, 4)}
    return tensors | {"bn1.running_mean": torch.zeros(4), "half": torch.ones(2).half()}


def full() -> dict[str, Any]:
    return {
        "epoch": 3,
        "state_dict": OrderedDict(state()),
        "args": Command(dict, [("a", 1)]),
        "lr": np.float64(0.1),
        "array": np.arange(5),
        "partial": functools.partial(sing, 1),
        "hyper_parameters": {"lr": 0.1, "widths": [1, 2, (3, None)]},
    }


def fixtures(folder: Path) -> dict[str, Path]:
    paths = {}
    trees: dict[str, Any] = {"state": state(), "full": full(), "module": {"model": Net()}}
    for (what, tree), zipped in itertools.product(trees.items(), (True, False)):
        path = folder / f"{what}{zipped}.pt"
        torch.save(tree, path, _use_new_zipfile_serialization=zipped)
        paths[f"{what} {'zip' if zipped else 'legacy'}"] = path
    torch.save(full(), folder / "4.pt", pickle_protocol=4)
    save_file(state(), folder / "a.safetensors")
    text_pickle = pickles.dumps({"a": np.float64(1), "b": [1, 2.0, "x", None, True]}, 0)
    pickles.write_zip(folder / "0.pt", text_pickle)
    return paths | {
        "protocol 4": folder / "4.pt",
        "safetensors": folder / "a.safetensors",
        "protocol 0": folder / "0.pt",
    }


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("kind", [
    "state zip", "state legacy", "full zip", "full legacy", "module zip", "module legacy",
    "protocol 4", "protocol 0", "safetensors",
])  # fmt: skip
def test_mutated_files_raise_nothing_but_our_errors(kind: str, canary: Path) -> None:
    original = fixtures(canary.parent)[kind].read_bytes()
    draw = random.Random(kind)
    path = canary.with_name("mutated")
    outcomes = {"opened": 0, "refused": 0}
    lines: set[str] = set()
    for _ in range(200):
        path.write_bytes(mutated(original, draw))
        try:
            contents = read_contents(path)
            outcomes["opened"] += 1
            for tensor in tensors_in(contents.tree):
                assert tensor.problem or tensor.nbytes < len(original) + 2**20
                tensor.materialise()
            recognise(path, contents.tree if isinstance(contents.tree, dict) else {})
        except LidarError as error:
            outcomes["refused"] += 1
            lines.update(str(error).splitlines())
    assert not canary.exists()
    assert len(lines) <= outcomes["refused"]  # one line each
    assert min(outcomes.values()) > 5  # the mutations are neither all fatal nor all harmless


def test_random_streams_of_opcodes(tmp_path: Path) -> None:
    draw = random.Random(0)
    words = [bytes([code]) for code in OPCODES] * 2 + [
        name("sing"), text("a"), text("_modules"), b"K\x01", b"q\x00", b"h\x00", b")", b"}", b"]",
        b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"(", b"(",
        b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\n_reconstruct\n", b"cbuiltins\nset\n",
        b"ccopyreg\n__newobj__\n", b"ccopyreg\n_reconstructor\n", b"c_codecs\nencode\n",
        b"ctorch\nSize\n", b"\x85", b"\x86", b"R", b"b", b"\x81", b".",
    ]  # fmt: skip
    ended = 0
    path = tmp_path / "stream"
    for _ in range(3000):
        path.write_bytes(b"".join(draw.choices(words, k=draw.randint(1, 60))) + b".")
        with path.open("rb") as file:
            try:
                Unpickler(file, path.stat().st_size, Budget(100), lambda saved: saved).load()
                ended += 1
            except (Malformed, Forbidden, LidarError):
                pass
    assert ended > 20


def test_operator_is_used_as_python_has_it() -> None:
    """The attack by an attribute calls what this calls."""
    assert operator.methodcaller("upper")("a") == "A"
