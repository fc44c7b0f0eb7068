"""Thousands of hostile pickles in the child, whose audit hooks see no import, call or write."""

from __future__ import annotations

import builtins
import io
import itertools
import pickle
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import hostile_walkers
import pickles
import pytest
from hostile_pickles import beside, text, within

from lidar_cli.errors import CheckpointError
from lidar_cli.runtime.sandbox import Sandbox

NAMES = [
    *(("builtins", name) for name in dir(builtins) if callable(getattr(builtins, name))),
    *(("os", name) for name in ("system", "popen", "execv", "fork", "remove", "open", "putenv")),
    *(("posix", name) for name in ("system", "execve", "fork", "kill", "_exit")),
    *(("subprocess", name) for name in ("Popen", "run", "call", "getoutput")),
    *(("sys", name) for name in ("exit", "setrecursionlimit", "addaudithook", "modules.clear")),
    ("importlib", "import_module"), ("runpy", "run_path"), ("socket", "socket"),
    ("code", "interact"),
    ("shutil", "rmtree"), ("pathlib", "Path.unlink"), ("tempfile", "mkstemp"),
    ("webbrowser", "open"),
    ("copyreg", "add_extension"), ("copyreg", "_reconstructor"), ("copyreg", "__newobj__"),
    ("copyreg", "__newobj_ex__"), ("copyreg", "pickle"), ("_codecs", "encode"),
    ("operator", "methodcaller"), ("operator", "attrgetter"), ("operator", "setitem"),
    ("functools", "partial"), ("functools", "reduce"), ("types", "FunctionType"),
    ("types", "CodeType"),
    ("ctypes", "CDLL"), ("pickle", "loads"), ("pickle", "Unpickler"), ("_pickle", "loads"),
    ("marshal", "loads"), ("threading", "Thread"), ("gc", "collect"), ("logging.config", "listen"),
    ("torch", "load"), ("torch", "FloatStorage"), ("torch.hub", "load"), ("torch", "Size"),
    ("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter"),
    ("torch._tensor", "_rebuild_from_type_v2"), ("torch.serialization", "_get_layout"),
    ("numpy", "load"), ("numpy", "dtype"), ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"), ("numpy._core.numeric", "_frombuffer"),
    ("torch", "device"), ("collections", "OrderedDict"), ("collections", "defaultdict"),
    ("collections", "deque"),
    ("lidar_cli.checkpoints.reading.pickle", "Recorded"),
    ("lidar_cli.checkpoints.reading.pickle", "load"),
    ("lidar_cli.runtime.sandbox", "Sandbox"), ("__main__", "x"), ("__main__", "__builtins__"),
]  # fmt: skip
CALLS = (
    b")R", text("touch canary") + b"\x85R", b")\x81", text("a") + b"\x85\x81", b")}\x92",
    b")}" + text("a") + b"K\x01s\x92", b")R)R", b")\x81}b", b"}b", b"N}\x86b", b")R(K\x01e",
    b")RK\x01a", b")R(K\x01K\x02u", b")RK\x01K\x02s", b")R(K\x01\x90", b"(K\x01e", b"(K\x01K\x02u",
    b"(K\x01\x90", b"Q", b"\x85Q", b"K\x01s", b"K\x01K\x02s",
)  # fmt: skip
KEYS = (
    "__class__", "__dict__", "__setstate__", "__call__", "__reduce__", "__del__", "__doc__", "name",
    "args", "entries", "append", "__code__", "__globals__", "find_class", "persistent_load",
)  # fmt: skip
LITERALS = (
    b"N", b"\x88", b"K\x01", text("a"), b"C\x01a", b"\x96" + struct.pack("<Q", 1) + b"a", b")",
    b"]",
    b"}", b"\x8f", b"(\x91", b"G" + bytes(8), b"\x8a\x09" + b"\x7f" * 9,
)  # fmt: skip
STORED = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x00tQ"
REACHABLE = (
    *LITERALS, STORED, b"ca\nb\n", b"ca\nb\n)R", b"ca\nb\n)\x81", b"ca\nb\n)R)R",
    b"ccollections\nOrderedDict\n", b"ccollections\nOrderedDict\n)R", b"ctorch\nSize\n)R",
    b"cbuiltins\nset\n)R", b"(" + text("module") + b"ca\nb\nNNtQ",
)  # fmt: skip


def named(module: str, name: str) -> Iterator[bytes]:
    yield f"c{module}\n{name}\n".encode()
    yield text(module) + text(name) + b"\x93"


def hostile() -> Iterator[bytes]:
    """What is placed in a pickle: all opcodes that call, or set something of what lies there."""
    for (module, name), call in itertools.product(NAMES, CALLS):
        for spelled in named(module, name):
            yield spelled + call
    for module, name in NAMES:
        yield f"(i{module}\n{name}\n".encode()
        yield b"(" + text("a") + f"i{module}\n{name}\n".encode()
        yield f"(c{module}\n{name}\no".encode()
        yield f"(c{module}\n{name}\nK\x01o".encode()
    for code in hostile_walkers.EXTENSIONS:
        extension = b"\x84" + struct.pack("<i", code)
        yield from (extension, extension + b")R", extension + b")\x81")
    yield from (
        b"\x82\x01)R",
        b"\x82\xf0)R",
        b"\x83\x34\x12)R",
        b"\x82\x00",
        b"\x84\xff\xff\xff\xff",
    )
    for target in REACHABLE:
        for key in KEYS:
            state = b"}" + text(key) + b"K\x01s"
            yield from (target + state + b"b", target + b"N" + state + b"\x86b")
            yield target + b"}" + state + b"\x86b"
        for change in (
            b"(K\x01e",
            b"(K\x01K\x02u",
            b"(K\x01\x90",
            b"K\x01a",
            b"K\x00K\x02s",
            b")R",
        ):
            yield target + change
            yield target + b"q\x00h\x00" + change
    for index in (0, 1, 2**20, 2**28, 2**31, 2**32 - 1):
        yield b"Nr" + struct.pack("<I", index)
        yield b"Nj" + struct.pack("<I", index)
    yield from (b"\x97", b"\x98", b"C\x01a\x98", b"\x96" + struct.pack("<Q", 1) + b"a\x98}b")


def packed(folder: Path, contents: list[bytes]) -> tuple[Path, list[int]]:
    path = folder / "all"
    path.write_bytes(b"".join(contents))
    return path, [len(content) for content in contents]


@pytest.fixture
def box() -> Iterator[Sandbox]:
    names = ("watched", "broken", "unlisted")
    made = Sandbox(
        walkers={f"hostile_walkers:{name}": () for name in names},
        search=[str(Path(hostile_walkers.__file__).parent)],
    )
    yield made
    made.close()


def test_no_hostile_pickle_does_anything_in_the_child(box: Sandbox, tmp_path: Path) -> None:
    assert len(NAMES) > 165
    keys = pickle.dumps(["0"], 2) + struct.pack("<q", 0)
    legacy = [
        pickles.LEGACY_HEADER + placed(attack) + keys
        for attack in hostile()
        for placed in (beside, within)
    ]
    path, lengths = packed(tmp_path, legacy)
    seen = box.run("hostile_walkers:watched", path, lengths, error=CheckpointError).value
    assert set(seen["events"]) == set()
    assert seen["changed"] == []
    assert len(lengths) > 10_000
    assert len(lengths) // 4 < seen["refused"] < len(lengths)


@pytest.mark.parametrize(
    "how", ["import", "attribute", "key", "value", "list", "inside", "modules"]
)
def test_the_watch_can_fail(how: str, box: Sandbox, tmp_path: Path) -> None:
    path, _ = packed(tmp_path, [b"x"])
    seen = box.run("hostile_walkers:broken", path, how, error=CheckpointError).value
    assert ("import" in seen["events"]) == (how == "import")
    assert seen["changed"]


def test_these_pickles_do_much_in_a_plain_unpickler() -> None:
    """The calls above are calls."""
    called = []

    class Plain(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> object:
            return lambda *args, **kwargs: called.append(name)

    for call in (b")R", text("touch canary") + b"\x85R"):
        Plain(io.BytesIO(beside(b"cos\nsystem\n" + call))).load()
    assert called == ["system", "system"]
    assert sys.version_info >= (3, 11)
