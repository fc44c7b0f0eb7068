"""Our reading gives what torch.load gives, bit for bit, and opens files that torch refuses."""

from __future__ import annotations

import argparse
import collections
import copyreg
import datetime
import enum
import functools
import json
import pathlib
import pickle
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pickles
import pytest
import torch
from literal import bits
from safetensors.torch import save_file
from torch import Tensor, nn

from lidar_cli.checkpoints.reading.lazy_tensor import BY_NUMPY, ITEMSIZE, LazyTensor
from lidar_cli.checkpoints.reading.read import read_checkpoint, read_contents
from lidar_cli.checkpoints.reading.stand_ins import Global, StandIn
from lidar_cli.errors import CheckpointError

KINDS = ["zip", "legacy"]


def save(path: Path, tree: Any, kind: str = "zip", **options: Any) -> Path:
    torch.save(tree, path, _use_new_zipfile_serialization=kind == "zip", **options)
    return path


def read(path: Path) -> Any:
    return read_contents(path).tree


def assert_same(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, Tensor):
        assert isinstance(ours, LazyTensor)
        assert ours.shape == tuple(theirs.shape)
        made = ours.materialise()
        assert made.dtype == theirs.dtype
        assert made.shape == theirs.shape
        assert bits(made) == bits(theirs)
    elif isinstance(theirs, dict):
        assert type(ours) is dict
        assert list(ours) == list(theirs)
        for key, value in theirs.items():
            assert_same(ours[key], value)
    elif isinstance(theirs, list | tuple):
        assert type(ours) is (list if isinstance(theirs, list) else tuple)
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    elif isinstance(theirs, torch.device):
        assert ours == str(theirs)
    elif isinstance(theirs, torch.dtype):
        assert isinstance(ours, Global)
        assert ours.name == str(theirs)
    else:
        assert type(ours) is type(theirs)
        assert ours == theirs


def every_type() -> dict[str, Tensor]:
    raw = torch.randint(0, 256, (64,), dtype=torch.uint8)
    dtypes = {name: getattr(torch, name, None) for name in ITEMSIZE}
    tensors = {name: raw.view(dtype) for name, dtype in dtypes.items() if dtype and name != "bool"}
    return {**{n: t.clone() for n, t in tensors.items()}, "bool": raw > 99}


def views() -> dict[str, Any]:
    base = torch.randn(4, 6, 5)
    scalar = torch.tensor(2.5)
    complex_ = torch.randn(3, 2, dtype=torch.complex64)
    return {
        "base": base,
        "shared": base[1:3, ::2],
        "transposed": base.permute(2, 0, 1),
        "last": base[3, 5, 4],
        "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "expanded": torch.randn(3).expand(50, 3),
        "overlapping": torch.arange(10.0).unfold(0, 4, 1),
        "0-d": scalar,
        "empty": torch.empty(0),
        "empty 2-D": torch.empty(3, 0, 2),
        "conjugate": complex_.conj(),
        "negative": torch.randn(3, 2, dtype=torch.complex64).conj().imag,
        "parameter": nn.Parameter(torch.randn(3)),
        "frozen": nn.Parameter(torch.arange(3), requires_grad=False),
        "buffer": nn.Buffer(torch.randn(2)),
    }


def containers() -> dict[Any, Any]:
    inner = {"a": torch.randn(2), 3: [1, -(2**70), 2**40, 0.1, float("inf"), None, True]}
    return {
        "nested": [inner, (inner, ()), {"again": inner}],
        "ordered": collections.OrderedDict(b=1, a=torch.ones(2)),
        "counter": collections.Counter("hello"),
        "set": {1, 2, "x"},
        "frozen": frozenset((1, 2)),
        "size": torch.Size([2, 3]),
        "device": torch.device("cpu"),
        "device 1": torch.device("cuda", 1),
        "dtype": torch.bfloat16,
        "text": "naïve \u2713 \ud83e".encode("utf-8", "surrogatepass").decode("utf-8", "replace"),
        "bytes": b"\x00\xff" * 200,
        "array of bytes": bytearray(b"abc"),
        "complex": 1 + 2j,
        ("a", (1, 2)): "tuple as a key",
        2**70: "long key",
        "long text": "x" * 300,
        "long tuple": tuple(range(300)),
        "layout": [0, 255, 256, 65535, 65536, -1, 2**31, -(2**31) - 1],
    }


def optimised() -> dict[str, Any]:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    return {
        "epoch": 3,
        "global_step": 12,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": model.state_dict(),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best": "a/b.ckpt"}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [scheduler.state_dict()],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 1e-3, "widths": [1, 2], "name": "simclr"},
        "rng": torch.get_rng_state(),
    }


TREES = {"types": every_type, "views": views, "containers": containers, "lightning": optimised}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_equal_to_torch_load_bit_for_bit(
    name: str, kind: str, protocol: int, tmp_path: Path
) -> None:
    tree = TREES[name]()
    path = save(tmp_path / "a.pt", tree, kind, pickle_protocol=protocol)
    unread = name == "types" and kind == "legacy"  # torch does not load its own float8 files there
    theirs = tree if unread else torch.load(path, weights_only=False)
    contents = read_contents(path)
    assert contents.kind == kind
    assert contents.stand_ins == ()
    assert_same(contents.tree, theirs)


@pytest.mark.parametrize("root", [torch.ones(2, 2), [torch.ones(1), 2], 7, "text", None, (1,)])
@pytest.mark.parametrize("kind", KINDS)
def test_any_root(root: Any, kind: str, tmp_path: Path) -> None:
    assert_same(read(save(tmp_path / "a.pt", root, kind)), root)


def test_the_comparison_can_fail(tmp_path: Path) -> None:
    tree = read(save(tmp_path / "a.pt", {"a": torch.tensor([1.0, -0.0])}))
    with pytest.raises(AssertionError):
        assert_same(tree, {"a": torch.tensor([1.0, 0.0])})
    with pytest.raises(AssertionError):
        assert_same(tree, {"a": torch.tensor([1.0, -0.0]), "b": 1})


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_safetensors_equal_bit_for_bit(tmp_path: Path) -> None:
    unknown = ("complex128", "complex32", "float4_e2m1fn_x2")
    tensors = {n: t for n, t in every_type().items() if n not in unknown}
    tensors |= {"matrix": torch.randn(3, 4), "empty": torch.empty(2, 0), "0-d": torch.tensor(1.5)}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    contents = read_contents(tmp_path / "a.safetensors")
    assert contents.kind == "safetensors"
    assert_same(dict(sorted(contents.tree.items())), dict(sorted(tensors.items())))


def test_a_tensor_is_read_when_it_is_asked_for_and_no_more_than_it_is(tmp_path: Path) -> None:
    base = torch.arange(100_000.0)
    path = save(tmp_path / "a.pt", {"part": base[10:14], "column": base.view(1000, 100)[:, 3]})
    tree = read(path)
    column = tree["column"].materialise()
    assert column.untyped_storage().nbytes() == 4000
    assert tree["part"].materialise().untyped_storage().nbytes() == 16
    content = bytearray(path.read_bytes())
    at = content.index(np.float32([10, 11, 12, 13]).tobytes())
    content[at : at + 4] = np.float32(-1).tobytes()
    path.write_bytes(content)
    assert tree["part"].materialise().tolist() == [-1, 11, 12, 13]
    path.write_bytes(content[: at + 8])
    with pytest.raises(CheckpointError, match="became shorter"):
        tree["part"].materialise()


# What torch's weights-only loader does not open.


class Named(dict):  # type: ignore[type-arg]
    """A dict with attributes, as in configuration libraries."""


class Listed(list):  # type: ignore[type-arg]
    pass


class Colour(enum.Enum):
    RED = 1


class Config:
    """As omegaconf's DictConfig: content behind a state of its own."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def __getstate__(self) -> Any:
        return {"_content": self.content, "_metadata": {"type": Any}}

    def __setstate__(self, state: Any) -> None:
        raise AssertionError("a foreign __setstate__ was called")


def exclude_bias_and_norm(parameter: Tensor) -> bool:
    raise AssertionError("a foreign function was called")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU())
        self.again = self.body[0]
        self.scale = nn.Parameter(torch.ones(2))
        self.register_buffer("kept", torch.arange(3))
        self.register_buffer("transient", torch.arange(3), persistent=False)
        self.register_parameter("nothing", None)


def weights_only(path: Path) -> Any:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_whole_modules_become_their_state_dicts(kind: str, protocol: int, tmp_path: Path) -> None:
    net = Net()
    path = save(tmp_path / "a.pt", {"model": net, "list": [net]}, kind, pickle_protocol=protocol)
    with pytest.raises(Exception, match=r"."):
        weights_only(path)
    contents = read_contents(path)
    assert_same(contents.tree["model"], dict(net.state_dict()))
    assert contents.tree["list"][0] is contents.tree["model"]
    assert "test_pickle.Net" in contents.stand_ins
    assert "torch.nn.modules.linear.Linear" in contents.stand_ins
    path = save(tmp_path / "b.pt", nn.DataParallel(net), kind, pickle_protocol=protocol)
    assert_same(read_checkpoint(path), dict(nn.DataParallel(net).state_dict()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_foreign_objects(kind: str, protocol: int, tmp_path: Path) -> None:
    named = Named(a=torch.ones(1), b=Named(c=2))
    named.attribute = 3
    tree = {
        "weight": torch.randn(2),
        "args": argparse.Namespace(lr=0.1, inner=argparse.Namespace(arch="vit")),
        "named": named,
        "listed": Listed([1, Listed([2])]),
        "queue": collections.deque([1, 2], maxlen=5),
        "default": collections.defaultdict(int, a=1),
        "path": pathlib.PurePosixPath("/a/b"),
        "partial": functools.partial(exclude_bias_and_norm, 1),
        "function": exclude_bias_and_norm,
        "config": Config({"lr": 1}),
        "colour": Colour.RED,
        "date": datetime.date(2020, 1, 2),
        "class": Named,
    }
    path = save(tmp_path / "a.pt", tree, kind, pickle_protocol=protocol)
    with pytest.raises(Exception, match=r"."):
        weights_only(path)
    contents = read_contents(path)
    tree_read = contents.tree
    assert_same(tree_read["weight"], tree["weight"])
    assert tree_read["args"] == {"lr": 0.1, "inner": {"arch": "vit"}}
    assert_same(tree_read["named"], {"a": torch.ones(1), "b": {"c": 2}})
    assert tree_read["listed"] == [1, [2]]
    assert tree_read["queue"] == [1, 2]
    assert tree_read["default"] == {"a": 1}
    assert tree_read["partial"].name == "functools.partial"
    assert tree_read["partial"].state[0].name == "test_pickle.exclude_bias_and_norm"
    assert isinstance(tree_read["function"], Global)
    assert tree_read["config"].state["_content"] == {"lr": 1}
    assert isinstance(tree_read["colour"], StandIn)
    assert tree_read["date"].args == (b"\x07\xe4\x01\x02",)
    expected = {"Named", "Listed", "exclude_bias_and_norm", "Config", "Colour"}
    assert {f"test_pickle.{name}" for name in expected} <= set(contents.stand_ins)
    assert {"functools.partial", "datetime.date"} <= set(contents.stand_ins)
    assert "argparse.Namespace" not in contents.stand_ins


def test_names_of_main_and_of_modules_that_are_not_installed(tmp_path: Path) -> None:
    content = (
        b"\x80\x02}(X\x01\0\0\0fc__main__\nexclude\nX\x01\0\0\0oc no such.module\nC\n)\x81}b u."
    )
    content = content.replace(b"b u", b"bu").replace(b"c no", b"cno")
    path = pickles.write_zip(tmp_path / "a.pt", content)
    with pytest.raises(AttributeError):
        torch.load(path, weights_only=False)
    assert read_contents(path).stand_ins == ("__main__.exclude", "no such.module.C")


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_numpy(protocol: int, tmp_path: Path) -> None:
    arrays = {code: np.arange(6).reshape(2, 3).astype(code) for code in BY_NUMPY}
    tree = {
        "scalars": {code: array[1, 2] for code, array in arrays.items()},
        "arrays": arrays,
        "fortran": np.asfortranarray(np.random.default_rng(0).normal(size=(3, 4))),
        "empty": np.zeros((0, 3)),
        "text": np.str_("vit"),
        "big": np.arange(3, dtype=">f4"),
        "big scalar": np.array(1.5, dtype=">f8")[()],
        "objects": np.array([{}, None], dtype=object),
    }
    for write in (pickles.write_zip, pickles.write_legacy):
        tree_read = read(write(tmp_path / "a.pt", pickles.dumps(tree, protocol)))
        for code, array in arrays.items():
            number = tree_read["scalars"][code]
            assert type(number) in (int, float, complex, bool)
            assert number == array[1, 2]
            assert_same(tree_read["arrays"][code], torch.from_numpy(array))
        assert_same(tree_read["fortran"], torch.from_numpy(tree["fortran"]))
        assert tree_read["empty"].shape == (0, 3)
        assert tree_read["text"] == "vit"
        assert tree_read["big scalar"] == 1.5
        for name, problem in (("big", "big-endian"), ("objects", "objects")):
            with pytest.raises(CheckpointError, match=problem):
                tree_read[name].materialise()


def test_what_python_2_wrote(tmp_path: Path) -> None:
    """Text as bytes, modules by their old names, numpy's numbers in quotes."""
    number = b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'f8'\nI0\nI1\ntR"
    number += b"(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbS'\\x9a\\x99\\x99\\x99\\x99\\x99\\xb9?'\ntR"
    content = (
        b"(dS'lr'\n" + number + b"sS'set'\nc__builtin__\nset\n((lI5\naL7L\natRsV\\u2713\nI01\ns"
    )
    content += b"U\x02\xff\xfeccopy_reg\n_reconstructor\n(cmine\nC\nc__builtin__\nobject\nNtR"
    content += b"(dS'a'\nI1\nsbs."
    contents = read_contents(pickles.write_legacy(tmp_path / "a.pt", content))
    thing = contents.tree.pop("\xff\xfe")
    assert contents.tree == {"lr": 0.1, "set": {5, 7}, "✓": True}
    assert (thing.name, thing.state) == ("mine.C", {"a": 1})
    assert contents.stand_ins == ("mine.C",)
    assert pickle.loads(number + b".", encoding="latin1") == 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_tensors_that_are_no_plain_numbers(kind: str, tmp_path: Path) -> None:
    tree = {
        "sparse": torch.eye(3).to_sparse(),
        "rows": torch.eye(3).to_sparse_csr(),
        "meta": torch.empty(3, 3, device="meta"),
        "plain": torch.ones(3, 3),
    }
    tree_read = read(save(tmp_path / "a.pt", tree, kind))
    for name, problem in (("sparse", "sparse"), ("rows", "sparse"), ("meta", "without data")):
        assert tree_read[name].shape == (3, 3)
        with pytest.raises(CheckpointError, match=problem):
            tree_read[name].materialise()
    assert_same(tree_read["plain"], tree["plain"])


def test_storage_views_of_old_torch(tmp_path: Path) -> None:
    """A legacy persistent id may name a part of a storage."""
    whole = pickles.Stored("k", 6)
    whole.id = (*whole.id, None)
    part = pickles.Stored("k", 6)
    part.id = (*part.id, ("v", 2, 3))
    tree = {"whole": pickles.View(whole, (6,), (1,)), "part": pickles.View(part, (3,), (1,))}
    data = {"k": np.arange(6, dtype=np.float32).tobytes()}
    path = pickles.write_legacy(tmp_path / "a.pt", pickles.dumps(tree), data)
    assert_same(read(path), torch.load(path, weights_only=False))
    assert read(path)["part"].materialise().tolist() == [2, 3, 4]


# Folders, and parts of checkpoints.


def hugging_face(folder: Path, name: str) -> dict[str, Tensor]:
    folder.mkdir()
    tensors = {"embeddings.weight": torch.randn(2, 3)}
    (save_file if name.endswith("safetensors") else torch.save)(tensors, folder / name)
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": 12}))
    return tensors


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_hugging_face_folders(name: str, tmp_path: Path) -> None:
    tensors = hugging_face(tmp_path / "m", name)
    contents = read_contents(tmp_path / "m")
    assert contents.path == tmp_path / "m" / name
    assert contents.config == {"num_attention_heads": 12}
    assert_same(contents.tree, tensors)
    for damaged in ("[1]", "{", "[" * 100_000):
        (tmp_path / "m" / "config.json").write_text(damaged)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            read_contents(tmp_path / "m")


@pytest.mark.parametrize(
    ("names", "asked", "command"),
    [
        (["model.safetensors.index.json"], ".", "save_pretrained"),
        (["model.safetensors.index.json"], "model.safetensors.index.json", "save_pretrained"),
        (["model-00001-of-00002.safetensors"], "model-00001-of-00002.safetensors", "max_shard"),
        (["__0_0.distcp"], "__0_0.distcp", "name it"),
        (["latest", "zero_to_fp32.py"], ".", r"zero_to_fp32\.py"),
        (["zero_pp_rank_0_mp_rank_00_model_states.pt"],
         "zero_pp_rank_0_mp_rank_00_model_states.pt", r"zero_to_fp32\.py"),
        (["model_0001.rank_0.pth"], "model_0001.rank_0.pth", "teacher_checkpoint"),
        (["last_checkpoint.rank_0"], "last_checkpoint.rank_0", "teacher_checkpoint"),
    ],
)  # fmt: skip
def test_parts_of_checkpoints_are_refused_with_what_to_do(
    names: list[str], asked: str, command: str, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=command) as caught:
        read_contents(tmp_path / asked)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["latest", "model.safetensors.index.json"])
def test_commands_that_join_parts_survive_odd_names(name: str, tmp_path: Path) -> None:
    """As words of a shell, whatever whoever named the folder wanted it to run."""
    folder = tmp_path / "a 'b' $(touch c)"
    folder.mkdir()
    (folder / name).write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        read_contents(folder)
    words = shlex.split(str(caught.value).partition("join them with: ")[2])
    assert str(folder) in words
    assert words[-1] in (f"{folder}-whole", f"{folder}.pt")


def test_pointers_inside_files_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.torch", {"type": "shard_list", "shards": ["a", "b"]})
    with pytest.raises(CheckpointError, match=r"VISSL's shard_list.*join them"):
        read_contents(path)
    content = b"\x80\x02}X\x01\0\0\0actorch.distributed._tensor.api\nDTensor\n)\x81}bs."
    with pytest.raises(CheckpointError, match=r"sharded by FSDP.*full_state_dict"):
        read_contents(pickles.write_zip(tmp_path / "b.pt", content))
    read_contents(save(tmp_path / "c.torch", {"type": "consolidated"}))


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_torchscript_and_numpy_archives_are_named(tmp_path: Path) -> None:
    module = torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2))
    torch.jit.save(module, tmp_path / "a.pt")
    np.savez(tmp_path / "b.npz", a=np.ones(2))
    with pytest.raises(CheckpointError, match="a TorchScript module"):
        read_contents(tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="NumPy archive"):
        read_contents(tmp_path / "b.npz")


LISTING = """
import pathlib, sys, time
from lidar_cli.checkpoints.reading.read import read_contents
began = time.perf_counter()
tree = read_contents(sys.argv[1]).tree
took = time.perf_counter() - began
assert not {"torch", "numpy"} & sys.modules.keys()
status = pathlib.Path("/proc/self/status")  # getrusage would count the parent's memory too
memory = int(status.read_text().split("VmHWM:")[1].split()[0]) if status.exists() else 0
print(took, memory, len(tree), sum(t.nbytes for t in tree.values()))
"""


def test_names_and_shapes_of_two_gigabytes_need_neither_torch_nor_the_bytes(
    tmp_path: Path,
) -> None:
    count, size = 500, 2**20  # 500 tensors of 4 MiB, in holes of the file
    tree = {
        f"blocks.{i}.weight": pickles.View(pickles.Stored(str(i), size), (1024, 1024), (1024, 1))
        for i in range(count)
    }
    sizes = {str(i): 4 * size for i in range(count)}
    path = pickles.write_sparse_zip(tmp_path / "a.pt", pickles.dumps(tree), sizes)
    assert path.stat().st_size > 2_000_000_000
    ended = subprocess.run(
        [sys.executable, "-c", LISTING, path], capture_output=True, text=True, check=True
    )
    took, memory, n_tensors, nbytes = map(float, ended.stdout.split())
    assert (n_tensors, nbytes) == (count, 4 * count * size)
    assert took < 1
    assert memory < 100_000  # kB
    theirs = torch.load(path, weights_only=True, mmap=True)  # a file as torch would have it
    assert theirs["blocks.7.weight"].shape == (1024, 1024)
    assert read(path)["blocks.7.weight"].materialise().count_nonzero() == 0


def test_copyreg_reconstructor_is_not_called(tmp_path: Path) -> None:
    """Protocol 0 and 1 make objects by it; here it is a name among others."""
    assert copyreg._reconstructor is not None
    for protocol in (0, 1):
        content = pickles.dumps({"named": Named(a=1), "listed": Listed([1])}, protocol)
        contents = read_contents(pickles.write_zip(tmp_path / "a.pt", content))
        assert contents.tree == {"named": {"a": 1}, "listed": [1]}
        assert contents.stand_ins == ("test_pickle.Named", "test_pickle.Listed")
