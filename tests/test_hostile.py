"""Files made to do harm end in one line or in inert stand-ins; nothing in them runs.

Each attack is first shown to work on an unpickler that calls what a file names.
"""

from __future__ import annotations

import contextlib
import copyreg
import functools
import io
import itertools
import json
import operator
import os
import pickle
import pickletools
import random
import resource
import subprocess
import sys
import time
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pickles
import pytest
import torch
from hostile_pickles import HERE, REFUSED, WRITERS, beside, name, refusal, state, text, within
from layouts import describe
from mutations import mutated, restructured, tensors_in
from safetensors.torch import save_file
from torch import nn

from lidar_cli.checkpoints.open import open_checkpoint
from lidar_cli.checkpoints.reading.interpret import interpret
from lidar_cli.checkpoints.reading.lazy_tensor import Malformed
from lidar_cli.checkpoints.reading.pickle import Forbidden, load
from lidar_cli.checkpoints.reading.read import as_dict, read_contents
from lidar_cli.checkpoints.reading.record import decode, encode
from lidar_cli.errors import CheckpointError, LidarError
from lidar_cli.runtime.sandbox import Sandbox

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
            GETATTR + SCHEDULE + text("get_lr") + b"\x86}" + text("a") + b"Ns\x92",
            GETATTR + GETATTR + text("get_lr") + b"\x86R",
            b"(" + SCHEDULE + text("_x") + b"ibuiltins\ngetattr\n",
            GETATTR,
        ):
            refusal(write(tmp_path / "b.pt", placed(other)), "names builtins.getattr, which")


def test_safety_does_not_rest_on_the_list(canary: Path) -> None:
    commands = [
        Command(os.system, f"touch {canary}"),
        Command(eval, f"open({str(canary)!r}, 'w')"),
        Command(open, str(canary), "w"),
        Command(subprocess.getoutput, f"touch {canary}"),
    ]
    path = pickles.write_zip(canary.with_name("a.pt"), pickles.dumps(commands))
    helpers = str(Path(pickles.__file__).parent)
    box = Sandbox(walkers={"hostile_walkers:unlisted": ()}, search=[helpers])
    walked = box.run("hostile_walkers:unlisted", path, str(path), error=CheckpointError)
    box.close()
    tree, names = decode(walked.value, path, path.stat().st_size)
    assert len(tree) == 4
    assert {"builtins.eval", f"{os.name}.system"} <= set(names)
    assert not canary.exists()


def test_there_is_no_way_to_switch_it_off() -> None:
    """Nothing in the package loads a checkpoint by another unpickler, or by that one here."""
    import lidar_cli.checkpoints

    room = Path(lidar_cli.checkpoints.__file__).parent
    readers = set()
    for path in room.rglob("*.py"):
        source = path.read_text()
        for word in ("pickle.load", "torch.load", "safe_globals"):
            assert word not in source, (path, word)
        if "import pickle" in source or "find_class" in source:
            readers.add(path.name)
    assert readers == {"pickle.py"}
    command = "import lidar_cli.checkpoints.reading.read, sys; print('pickle' in sys.modules)"
    ended = subprocess.run(
        [
            sys.executable,
            "-ISc",
            f"import sys; sys.path.append({str(room.parents[1])!r}); {command}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout == "False\n"


# Mutations.


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.bn1 = nn.BatchNorm2d(4)


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
            describe(path, contents.tree if isinstance(contents.tree, dict) else {})
        except LidarError as error:
            outcomes["refused"] += 1
            lines.update(str(error).splitlines())
    assert not canary.exists()
    assert len(lines) <= outcomes["refused"]  # one line each
    assert min(outcomes.values()) > 5  # the mutations are neither all fatal nor all harmless


@pytest.mark.parametrize(
    "count", [100, pytest.param(10_000, marks=pytest.mark.nightly)], ids=["short", "nightly"]
)
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_restructured_pickles_open_or_end_in_one_line(count: int, canary: Path) -> None:
    """Prints how many gave a traceback, did not end in time, or took too much memory."""
    folder, draw = canary.parent, random.Random(count)
    originals = []
    for path in fixtures(folder).values():
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                stem = archive.namelist()[0].split("/")[0]
                names = [n for n in archive.namelist() if n.startswith(f"{stem}/data/")]
                stored = {n.rpartition("/")[2]: archive.read(n) for n in names}
                originals.append((archive.read(f"{stem}/data.pkl"), stored))
    outcomes: Counter[str] = Counter()
    for at in range(count):
        content, stored = originals[at % len(originals)]
        write = WRITERS[at // len(originals) % 2]
        path = write(folder / "restructured", restructured(content, draw), stored)
        began = time.monotonic()
        try:
            contents = read_contents(path)
            outcomes["opened"] += 1
            describe(path, as_dict(contents))
        except LidarError as error:
            outcomes["refused"] += 1
            outcomes["lines"] += "\n" in str(error)
        except Exception:
            outcomes["tracebacks"] += 1
        outcomes["hangs"] += time.monotonic() - began > 60
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes["memory"] += own > 3_000_000
    print({name: outcomes[name] for name in ("opened", "refused", "tracebacks", "hangs", "memory")})
    assert outcomes["tracebacks"] == outcomes["hangs"] == outcomes["memory"] == 0
    assert outcomes["lines"] == 0
    assert min(outcomes["opened"], outcomes["refused"]) > 2
    assert not canary.exists()


@pytest.fixture
def little_memory() -> Iterator[None]:
    """256 MB more than this process has, as a child is limited too: some streams ask for 32 GB."""
    if sys.platform != "linux":
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + (1 << 28)
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def test_random_streams_of_opcodes(little_memory: None) -> None:
    draw = random.Random(0)
    words = [code.code.encode('latin-1') for code in pickletools.opcodes] * 2 + [
        name("sing"), text("a"), text("_modules"), b"K\x01", b"q\x00", b"h\x00", b")", b"}", b"]",
        b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"(", b"(",
        b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\n_reconstruct\n", b"cbuiltins\nset\n",
        b"ccopyreg\n__newobj__\n", b"ccopyreg\n_reconstructor\n", b"c_codecs\nencode\n",
        b"ctorch\nSize\n", b"\x85", b"\x86", b"R", b"b", b"\x81", b".",
    ]  # fmt: skip
    ended = 0
    for _ in range(3000):
        stream = b"".join(draw.choices(words, k=draw.randint(1, 60))) + b"."
        try:
            records, _ = load(io.BytesIO(stream), True)
            json.dumps(encode(interpret(records, lambda saved: None), ()))
            ended += 1
        except (Malformed, Forbidden, MemoryError):
            pass
    assert ended > 20


def test_operator_is_used_as_python_has_it() -> None:
    """The attack by an attribute calls what this calls."""
    assert operator.methodcaller("upper")("a") == "A"
