"""Files that are no checkpoint, or a damaged one, end in one line, and run nothing."""

from __future__ import annotations

import argparse
import functools
import hashlib
import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import describe
from make import CHANNELS, tiny_state_dict
from raising import raises
from safetensors.torch import save_file
from torch import nn

from lidar_cli.checkpoints.open import open_checkpoint
from lidar_cli.checkpoints.reading.read import read_checkpoint, read_contents, sha256
from lidar_cli.errors import CheckpointError, LidarError, NoWeights


def save(path: Path, tree: Any, **options: Any) -> Path:
    torch.save(tree, path, **options)
    return path


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS.*git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "an HTML page.*fetch the file again"),
        (b"\n <html lang='en'>", "an HTML page"),
        (b"epoch,loss\n1,0.5\n", "is a text file; expected a file of torch.save"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file; .*lidar score"),
        (b"\x1f\x8b\x08" + bytes(100), "gzip"),
        (bytes(range(128, 256)) * 9, "not a torch file"),
        (b"PK\x03\x04" + bytes(100), "damaged or truncated torch file"),
        (b"\x10\0\0\0\0\0\0\0{'not': json}    ", "damaged safetensors"),
        (b"\x80\x02.", "not a torch file"),
    ],
)
def test_strangers(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(path)
    assert str(path) in one_line(caught.value)
    assert not isinstance(caught.value, NoWeights)


def test_no_file_and_a_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        open_checkpoint(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match=r"is a directory, expected one .*lidar rank"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="no such file"):
        sha256(tmp_path / "none.pt")


def optimizer_state() -> dict[str, Any]:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "tree",
    [
        optimizer_state(),
        {"base_lrs": [0.1], "last_epoch": 3, "_step_count": 4},
        {"cpu": torch.get_rng_state(), "cuda": [torch.get_rng_state()]},
        {"optimizer": optimizer_state(), "epoch": 1},
        {"model": {}},
        {},
        torch.ones(3, 3),
        [torch.ones(3, 3)],
        7,
        argparse.Namespace(learning_rate=0.1),
        {"numpy": np.random.default_rng(0).bit_generator.state, "state": np.ones(3)},
    ],
    ids=["optimizer", "scheduler", "rng", "nested optimizer", "empty model", "empty", "tensor",
         "list", "number", "arguments", "numpy"],
)  # fmt: skip
def test_files_without_weights(tree: Any, legacy: bool, tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", tree, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(NoWeights) as caught:
        open_checkpoint(path)
    one_line(caught.value)


def witness() -> None:
    raise AssertionError("a function named in a file was called")


class Witness:
    """Its pickle asks for a call."""

    def __reduce__(self) -> Any:
        return witness, ()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("stranger", "name"),
    [
        (argparse.Namespace(lr=0.1), None),  # becomes a plain dict
        (np.float64(0.1), None),  # a plain number
        (functools.partial(print), r"functools\.partial"),
        (nn.ReLU(), r"torch\.nn\.modules\.activation\.ReLU"),
        (Witness(), r"\w+\.witness"),
    ],
)
def test_foreign_objects_beside_weights_are_named_and_never_made(
    stranger: Any, name: str | None, legacy: bool, tmp_path: Path
) -> None:
    tree = {"model": tiny_state_dict(), "other": stranger}
    path = save(tmp_path / "a.pt", tree, _use_new_zipfile_serialization=not legacy)
    stand_ins = read_contents(path).stand_ins
    assert bool(stand_ins) == (name is not None)
    assert name is None or any(re.fullmatch(name, found) for found in stand_ins)
    assert open_checkpoint(path).description.widths == {"backbone": CHANNELS[-1]}


def test_the_witness_would_be_called_by_a_plain_unpickler(tmp_path: Path) -> None:
    """The test above can fail."""
    with pytest.raises(AssertionError, match="was called"):
        pickle.loads(pickle.dumps(Witness()))


def test_weights_in_other_places_are_named(tmp_path: Path) -> None:
    tree = {"student": tiny_state_dict(), "loss": {"heads": {"a.weight": torch.ones(1)}}}
    path = save(tmp_path / "a.pt", tree)
    message = r"not understood: loss\.heads\.a\.weight.*: --prefix student\.$"
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)
    description = open_checkpoint(path, prefix="student").description
    assert description.ignored == ("loss (not read)",)


def test_entries_that_are_no_tensor_are_named_inside_a_container_only(tmp_path: Path) -> None:
    state = tiny_state_dict()
    open_checkpoint(save(tmp_path / "a.pt", state | {"epoch": 3, "optimizer": {}}))
    with pytest.raises(CheckpointError, match="not understood: _ema"):
        open_checkpoint(save(tmp_path / "a.pt", {"model": state | {"_ema": {}}}))


def test_tree_that_holds_itself(tmp_path: Path) -> None:
    tree: dict[str, Any] = {"epoch": 1}
    tree["model"] = tree
    with pytest.raises(NoWeights):
        open_checkpoint(save(tmp_path / "a.pt", tree))


def test_recognise_needs_no_values(tmp_path: Path) -> None:
    tensors = {name: t.to("meta") for name, t in tiny_state_dict().items()}
    description = describe(tmp_path / "a.pt", tensors)
    assert description.arch == "resnet 1-1-1-1 (width 4, 3x3 stem)"
    assert description.widths == {"backbone": CHANNELS[-1]}


@functools.cache
def valid_file(kind: str, directory: Path) -> bytes:
    path = directory / f"valid.{kind}"
    if kind == "safetensors":
        save_file(tiny_state_dict(), path)
    else:
        save(path, {"model": tiny_state_dict()}, _use_new_zipfile_serialization=kind == "zip")
    assert open_checkpoint(path).description.arch.startswith("resnet")
    return path.read_bytes()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_damaged_files_end_in_one_line_or_embed(kind: str, directory: Path, data: Any) -> None:
    """Cut short or with bytes changed, a file is refused; a changed weight is only a weight."""
    content = bytearray(valid_file(kind, directory))
    last = len(content) - 1
    # Keys and shapes lie at one end or the other, numbers in between: aim at the first.
    edge = st.integers(0, min(4000, last))
    place = edge | edge.map(lambda i: last - i) | st.integers(0, last)
    if data.draw(st.booleans()):
        content = content[: data.draw(place)]
    for i in data.draw(st.lists(place, max_size=4)):
        if i < len(content):
            content[i] = data.draw(st.integers(0, 255))
    path = directory / f"damaged.{kind}"
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    try:
        loaded = open_checkpoint(path)
    except LidarError as error:
        one_line(error)
    else:
        assert loaded.embed(torch.zeros(1, 3, 8, 8), ["backbone"])["backbone"].dim() == 2


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_files_are_refused(kind: str, directory: Path) -> None:
    content = valid_file(kind, directory)
    path = directory / f"short.{kind}"
    for share in (0.1, 0.5, 0.9, 0.99):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(path)
        one_line(caught.value)


# Checksums.


def hashed(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("legacy", [False, True])
def test_the_digest_is_that_of_all_bytes(legacy: bool, tmp_path: Path) -> None:
    tree = {f"{i}": torch.randn(i, 1000) for i in range(1, 600, 100)}  # over several pieces
    path = save(tmp_path / "a.pt", tree, _use_new_zipfile_serialization=not legacy)
    assert sha256(path) == hashed(path)


def test_a_changed_byte_of_any_tensor_is_a_damaged_file(tmp_path: Path) -> None:
    tree = {"a": torch.randn(700_000), "b": torch.randn(7), "empty": torch.empty(0)}
    path = save(tmp_path / "a.pt", tree)
    content = path.read_bytes()
    places = [content.index(tree[name].numpy().tobytes()) for name in ("a", "b")]
    for at in (places[0], places[0] + 2_799_999, places[1] + 27):
        changed = bytearray(content)
        changed[at] ^= 1
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"damaged: 1 of its \d+ parts differ.*CRC-32"):
            sha256(path)
    path.write_bytes(content)
    assert sha256(path) == hashed(path)


def test_a_file_without_checksums_is_no_damaged_one(tmp_path: Path) -> None:
    """torch can be asked to write none, which makes all of them wrong."""
    torch.serialization.set_crc32_options(False)
    try:
        path = save(tmp_path / "a.pt", {"a": torch.randn(3)})
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(path) as archive, pytest.raises(zipfile.BadZipFile):
        archive.read(archive.namelist()[0])
    assert sha256(path) == hashed(path)


def test_members_that_were_filled_later_have_no_checksums(tmp_path: Path) -> None:
    """The others are checked all the same."""
    path = tmp_path / "a.pt"
    with torch.serialization.skip_data():
        save(path, {"a": torch.randn(300)})
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("a/data/0")
        assert member.CRC == 0
    header = member.header_offset
    start = header + 30 + sum(struct.unpack_from("<HH", content, header + 26))
    weight = torch.randn(300)
    content[start : start + 1200] = weight.numpy().tobytes()
    path.write_bytes(content)
    assert torch.equal(torch.load(path)["a"], weight)
    assert sha256(path) == hashed(path)
    content[content.index(b"little")] ^= 1
    path.write_bytes(content)
    with raises(CheckpointError, "checksum"):
        sha256(path)


def test_members_that_share_their_bytes_have_no_digest(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", {"a": torch.zeros(100), "b": torch.zeros(100)})
    content = bytearray(path.read_bytes())
    entries = [match.start() for match in re.finditer(rb"PK\x01\x02", content)]
    names = [re.search(rb"/data/(\d)|$", content[at + 46 : at + 60]) for at in entries]
    keys = [name[1] if name else None for name in names]
    first, second = (entries[keys.index(key)] for key in (b"0", b"1"))
    content[second + 42 : second + 46] = content[first + 42 : first + 46]
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="share their bytes"):
        sha256(path)


LARGE = 100_001


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ([0.1] * LARGE, "list"),
        (set(range(LARGE)), "set"),
        (dict.fromkeys(range(LARGE)), "dict"),
        (bytes(LARGE), "bytes"),
        (bytearray(LARGE), "bytearray"),
        (argparse.Namespace(losses=[0.1] * LARGE), "list"),
        ([(f"/images/{i}.jpg", i % 10) for i in range(LARGE)], "list"),
        ([{"loss": 0.1, "epoch": i} for i in range(LARGE)], "list"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_long_log_is_a_stand_in_beside_the_weights(
    value: object, kind: str, tmp_path: Path
) -> None:
    weight = torch.randn(3)
    path = save(tmp_path / "a.pt", {"state_dict": {"a": weight}, "log": value})
    tree = read_contents(path).tree
    log = tree["log"]["losses"] if isinstance(value, argparse.Namespace) else tree["log"]
    assert log.name == f"builtins.{kind}"
    assert (log.args, log.kwargs, log.state, log.entries, log.elements) == (None,) * 5
    assert torch.equal(tree["state_dict"]["a"].materialise(), weight)


def test_many_tensors_are_no_log(tmp_path: Path) -> None:
    """One tensor inside one of many elements keeps them all."""
    weight = torch.randn(3)
    pairs = [(str(i), i) for i in range(LARGE)]
    tree = read_contents(save(tmp_path / "a.pt", [*pairs, ("a", weight)])).tree
    assert tree[:-1] == pairs
    assert torch.equal(tree[-1][1].materialise(), weight)
