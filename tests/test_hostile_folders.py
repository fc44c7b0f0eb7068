"""Distributed checkpoints made to do harm end in one line, within the memory of their files."""

from __future__ import annotations

import dataclasses
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_pickles import text
from mutations import mutated, tensors_in
from raising import raises
from sharded import saved, write_raw
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata

from lidar_cli.checkpoints.reading.read import read_checkpoint, read_contents, sha256
from lidar_cli.errors import CheckpointError, LidarError
from lidar_cli.runtime import sandbox

ONES = torch.ones(2)
Change = Callable[[Metadata], None]


def refused(folder: Path, words: str) -> None:
    """A folder is refused in one line, when it is opened or when its tensor is read."""
    with pytest.raises(CheckpointError, match=words) as raised:
        read_checkpoint(folder)["model"]["weight"].materialise()
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 800


def infos(**fields: Any) -> Change:
    """A change of all storage records."""

    def change(metadata: Metadata) -> None:
        stored = metadata.storage_data
        metadata.storage_data = {
            index: dataclasses.replace(info, **fields) for index, info in stored.items()
        }

    return change


def chunks(*boxes: tuple[tuple[int, ...], tuple[int, ...]]) -> Change:
    """A change of the chunks, whose pieces remain."""

    def change(metadata: Metadata) -> None:
        metadata.state_dict_metadata["model.weight"].chunks[:] = [
            ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets, sizes in boxes
        ]

    return change


def test_a_sound_folder_is_read(tmp_path: Path) -> None:
    folder = write_raw(tmp_path / "f", [ONES, 2 * ONES])
    assert read_checkpoint(folder)["model"]["weight"].materialise().tolist() == [1, 1, 2, 2]
    sha256(folder)


def test_names_in_metadata_are_not_called(tmp_path: Path) -> None:
    """They are by torch's reader."""
    folder, canary = write_raw(tmp_path / "f", [ONES, ONES]), tmp_path / "canary"
    call = b"cpathlib\nPath.touch\n(cpathlib\nPath\n(" + text(str(canary)) + b"tRtR."
    (folder / ".metadata").write_bytes(b"\x80\x04" + call)
    with pytest.raises(Exception, match=r".*"):
        FileSystemReader(folder).read_metadata()
    assert canary.exists()
    canary.unlink()
    refused(folder, "no description of a distributed checkpoint")
    system = b"\x80\x02cos\nsystem\n(" + text(f"touch {canary}") + b"tR."
    (folder / ".metadata").write_bytes(system)
    refused(folder, r"names os\.system, which no checkpoint needs")
    assert not canary.exists()


@pytest.mark.parametrize(
    "name",
    ["../x.distcp", "/etc/x.distcp", "a/x.distcp", "..", "", "x.pt", "a\\x.distcp", "\0.distcp",
     "a" * 100_000, "\x1b[2J.distcp/"],
)  # fmt: skip
def test_files_outside_the_folder_are_not_opened(name: str, tmp_path: Path) -> None:
    (tmp_path / "x.distcp").write_bytes(saved(ONES))
    folder = write_raw(tmp_path / "f", [ONES, ONES], change=infos(relative_path=name))
    with raises(CheckpointError, "outside"):
        read_contents(folder)


@pytest.mark.parametrize("linked", ["__0_0.distcp", ".metadata"])
def test_links_are_not_followed(linked: str, tmp_path: Path) -> None:
    folder = write_raw(tmp_path / "f", [ONES, ONES])
    (folder / linked).rename(tmp_path / "elsewhere")
    (folder / linked).symlink_to(tmp_path / "elsewhere")
    with raises(CheckpointError, "is-a-link"):
        read_contents(folder)
    (folder / linked).unlink()
    with pytest.raises(CheckpointError):
        read_contents(folder)


def set_path(path: Any) -> Change:
    return lambda metadata: metadata.planner_data.update({"model.weight": path})


def set_size(*size: int) -> Change:
    def change(metadata: Metadata) -> None:
        metadata.state_dict_metadata["model.weight"].size = torch.Size(size)

    return change


def set_type(dtype: Any) -> Change:
    def change(metadata: Metadata) -> None:
        metadata.state_dict_metadata["model.weight"].properties.dtype = dtype

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (infos(offset=-1), "negative size"),
        (infos(length=-1), "negative size"),
        (infos(offset=10**6), r"reaches past __0_0\.distcp"),
        (infos(length=10**9), r"reaches past __0_0\.distcp"),
        (infos(offset=2**62), "impossible size"),
        (infos(offset=1.5), "impossible size"),
        (infos(offset=0), "two pieces share bytes"),
        (infos(length=3), "has only 3 bytes"),
        (infos(transform_descriptors=["stream.zstd/1"]), r"stored as stream\.zstd/1.*dcp_to_torch"),
        (chunks(((0,), (2,))), "overlap, or leave a hole"),
        (chunks(((0,), (2,)), ((2,), (1,))), "overlap, or leave a hole"),
        (chunks(((0,), (3,)), ((2,), (1,))), "overlap, or leave a hole"),
        (chunks(((0,), (2,)), ((0,), (2,))), "two pieces share bytes|overlap"),
        (chunks(((0,), (2,)), ((3,), (1,))), "a piece of 'model.weight' is missing"),
        (chunks(((0,), (2,)), ((2,), (3,))), "outside its tensor"),
        (chunks(((0, 0), (2, 1)), ((2,), (2,))), "is missing"),
        (chunks(), "overlap, or leave a hole"),
        (set_size(10**12), "overlap, or leave a hole"),
        (set_size(2**40, 2**40), "impossible shape"),
        (set_size(4, 1), "outside its tensor"),
        (set_type(torch.float64), "has only|float32 .2., not float64"),
        (set_type(torch.int32), r"float32 \[2\], not int32 \[2\]"),
        (set_type("float32"), "sparse or quantised"),
        (set_path(()), "no path"),
        (set_path(("a",) * 51), "no path"),
        (set_path((("a",),)), "no path"),
        (set_path(None), "no path"),
        (set_path((b"a",)), "no path"),
    ],
)
def test_false_metadata_is_refused(change: Change, words: str, tmp_path: Path) -> None:
    refused(write_raw(tmp_path / "f", [ONES, ONES], change=change), words)


def test_paths_that_contradict_one_another_are_refused(tmp_path: Path) -> None:
    def twice(metadata: Metadata, path: Any) -> None:
        (index, info), *_ = metadata.storage_data.items()
        metadata.state_dict_metadata["b"] = dataclasses.replace(
            metadata.state_dict_metadata["model.weight"],
            size=torch.Size((2,)),
            chunks=[ChunkStorageMetadata(torch.Size((0,)), torch.Size((2,)))],
        )
        metadata.storage_data[dataclasses.replace(index, fqn="b")] = dataclasses.replace(
            info, relative_path="__1_0.distcp"
        )
        metadata.planner_data["b"] = path

    for number, path in enumerate((("model",), ("model", "weight"), ("model", "weight", "b"))):
        folder = tmp_path / str(number)
        write_raw(folder, [ONES, ONES], change=lambda m, p=path: twice(m, p))
        (folder / "__1_0.distcp").write_bytes(saved(ONES))
        refused(folder, "same path|inside another")
    folder = write_raw(tmp_path / "f", [ONES, ONES], change=lambda m: twice(m, ("x", 10**15)))
    (folder / "__1_0.distcp").write_bytes(saved(ONES))
    assert list(read_checkpoint(folder)["x"]) == [10**15]


@pytest.mark.parametrize(
    ("piece", "words"),
    [
        (b"x" * 100, "zip directory cannot be read"),
        (b"", "has only 0 bytes"),
        (saved({"a": 1}), "holds no tensor"),
        (torch.ones(3), r"holds float32 \[3\], not float32 \[2\]"),
        (torch.ones(2, dtype=torch.int32), r"holds int32 \[2\], not float32"),
        (saved(ONES)[:-30], "cannot be read"),
        (ONES.to_sparse(), "sparse"),
    ],
)
def test_pieces_that_are_no_such_tensor_are_refused(piece: Any, words: str, tmp_path: Path) -> None:
    refused(write_raw(tmp_path / "f", [ONES, piece]), words)


@pytest.mark.parametrize("content", [b"", b"\x80", b"\x80\x04N.", b"\x80\x04}.", b"hello"])
def test_metadata_that_is_none_is_refused(content: bytes, tmp_path: Path) -> None:
    folder = write_raw(tmp_path / "f", [ONES, ONES])
    (folder / ".metadata").write_bytes(content)
    refused(folder, "damaged")


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02](" + b"]q\x01" + b"(h\x01h\x01h\x01h\x01e" * 3 + b"e.",
        b"\x80\x02Nr\xff\xff\xff\xff.",
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="memory is watched, not limited")
def test_bombs_in_metadata_cost_a_limited_child(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox.SHARED, "limits", sandbox.Limits(seconds=1, memory=256 << 20))
    folder = write_raw(tmp_path / "f", [ONES, ONES])
    (folder / ".metadata").write_bytes(content)
    refused(folder, "damaged|takes more than")


def test_a_list_of_chunks_without_end_is_left_at_the_second(tmp_path: Path) -> None:
    """Chunks that are one object take two bytes each."""

    def repeat(metadata: Metadata) -> None:
        chunks = metadata.state_dict_metadata["model.weight"].chunks
        chunks[1:] = [chunks[0]] * 200_000

    folder = write_raw(tmp_path / "f", [ONES, ONES], change=repeat)
    refused(folder, "two pieces of 'model.weight' overlap")


def test_damaged_folders_open_or_end_in_one_line(tmp_path: Path) -> None:
    draw = random.Random(0)
    folder = write_raw(tmp_path / "f", [ONES, 2 * ONES])
    contents = {name: (folder / name).read_bytes() for name in (".metadata", "__0_0.distcp")}
    n_read, messages = 0, list[str]()
    for _ in range(60):
        name = draw.choice(list(contents))
        for other, content in contents.items():
            (folder / other).write_bytes(content)
        (folder / name).write_bytes(mutated(contents[name], draw))
        try:
            for tensor in tensors_in(read_checkpoint(folder)):
                assert tensor.materialise().numel() <= 4
            sha256(folder)
            n_read += 1
        except LidarError as error:
            messages.append(str(error))
    assert n_read > 3
    assert all(map(str.isprintable, messages))
