"""Feature files with damage of any kind: the same numbers, or one line, and HDF5 takes none along."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
from damage import Reading
from damage_reader import joined, shards
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from test_features import CLEAN, WIDTHS, complete, create, write

from lidar_cli.features import partial_path, shard_path

pytest.importorskip("resource", reason="limits of a process are POSIX")

LABELS = [0, 1, -1, 1, 0, 1, 0, 1]


class Sound(NamedTuple):
    """A sound file, as the folder that holds it; `damaged` is the file whose bytes change."""

    kind: str
    folder: dict[str, bytes]
    damaged: str
    places: Sequence[int]  # of bytes that are neither rows nor checksums, nor room left free


def metadata(content: bytes, path: Path) -> list[int]:
    """Places of what HDF5 itself wrote: no numbers of ours, and no zeros among zeros."""
    ours: set[int] = set()

    def add(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind != "O" and not item.is_virtual:
            start = item.id.get_offset()
            ours.update(range(start, start + item.nbytes))

    with h5py.File(path) as file:
        file.visititems(add)
    return [i for i in range(len(content)) if i not in ours and any(content[max(0, i - 8) : i + 9])]


def sound(kind: str, folder: Path) -> Sound:
    folder.mkdir()
    path = folder / "f.h5"
    if kind == "partial":
        with create(path, labels=LABELS) as writer:
            write(writer, 0, 5)
        damaged = partial_path(path)
    elif kind in ("joined", "shard"):
        shards(path)
        joined(path)
        damaged = path if kind == "joined" else shard_path(path, 1, 2)
    else:
        damaged = complete(path, labels=LABELS)
    content = {one.name: one.read_bytes() for one in folder.iterdir()}
    places = metadata(content[damaged.name], damaged)
    return Sound(kind, content, damaged.name, places)


def put(made: Sound, content: bytes | None, folder: Path) -> Path:
    """The folder with one file's content changed; the path that the readers are given."""
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for name, original in made.folder.items():
        (folder / name).write_bytes(content if name == made.damaged and content else original)
    return folder / "f.h5"


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reading]:
    with Reading(tmp_path_factory.mktemp("reading")) as started:
        yield started


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory, reading: Reading) -> dict[str, Sound]:
    folder = tmp_path_factory.mktemp("sound")
    made = {kind: sound(kind, folder / kind) for kind in ("complete", "partial", "joined", "shard")}
    for kind, one in made.items():
        reading.sound(kind, put(one, None, folder / "copy"))
    return made


# Bytes


def changed(content: bytes, places: Sequence[int], draw: random.Random) -> bytes:
    """A few bytes of metadata, or a run of them, replaced."""
    new = bytearray(content)
    for _ in range(draw.choice([1, 1, 1, 2, 4, 16])):
        at = draw.choice(places)
        if draw.random() < 0.8:
            new[at] = draw.choice([new[at] ^ 1 << draw.randrange(8), 0, 255, draw.randrange(256)])
        else:
            run = min(draw.choice([2, 4, 8, 64]), len(new) - at)
            new[at : at + run] = draw.choice([bytes(run), b"\xff" * run, draw.randbytes(run)])
    return bytes(new)


def moved(content: bytes, places: Sequence[int], draw: random.Random) -> bytes:
    """A block removed, doubled, or written over another."""
    length = draw.choice([1, 8, 32, 512, 4096])
    one, two = draw.choice(places), draw.choice(places)
    block = content[one : one + length]
    return draw.choice(
        [
            content[:one] + content[one + length :],
            content[:two] + block + content[two:],
            content[:two] + block + content[two + len(block) :],
        ]
    )


def cut(content: bytes, places: Sequence[int], draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


DAMAGES = {"changed": changed, "moved": moved, "cut": cut}


def read_damaged(
    reading: Reading, sounds: dict[str, Sound], folder: Path, examples: int, first: int
) -> None:
    before = reading.tally.outcomes.total()

    @seed(first)
    @settings(max_examples=examples, derandomize=False, database=None)
    @given(
        kind=st.sampled_from(sorted(sounds)),
        how=st.sampled_from(["changed", "changed", "changed", "moved", "cut"]),
        draw=st.integers(0, 2**32),
    )
    def read(kind: str, how: str, draw: int) -> None:
        made = sounds[kind]
        content = DAMAGES[how](made.folder[made.damaged], made.places, random.Random(draw))
        reading.of(kind, put(made, content, folder), guarded=draw % 16 == 0)

    read()
    assert reading.tally.outcomes.total() - before >= examples


def test_bytes_of_metadata(reading: Reading, sounds: dict[str, Sound], tmp_path: Path) -> None:
    read_damaged(reading, sounds, tmp_path / "f", 200, first=0)
    print(reading.tally)
    assert min(reading.tally.outcomes[one] for one in ("same", "refused", "other")) > 5


@pytest.mark.nightly
@pytest.mark.parametrize("first", range(1, 21))
def test_many_bytes_of_metadata(
    first: int, reading: Reading, sounds: dict[str, Sound], tmp_path: Path
) -> None:
    read_damaged(reading, sounds, tmp_path / "f", 200, first)
    print(reading.tally)
