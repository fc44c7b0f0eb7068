"""Feature files with any damage give the same numbers or one line, and end no process.

A value without a checksum, such as a label, may become another; rows may not.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
from damage import Reading
from damage_reader import joined, shards
from feature_files import CLEAN, WIDTHS, complete, create, write
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from lidar_cli.features.schema import partial_path
from lidar_cli.features.shards import shard_path

pytest.importorskip("resource", reason="limits of a process are POSIX")

KINDS = ("complete", "packed", "partial", "joined", "shard")
LABELS = [0, 1, -1, 1, 0, 1, 0, 1]


class Sound(NamedTuple):
    """A sound file, as the folder that holds it; `damaged` is the file whose bytes change."""

    kind: str
    folder: dict[str, bytes]
    damaged: str
    places: Sequence[int]  # of bytes that are neither rows nor checksums, unless packed, nor free


def metadata(content: bytes, path: Path) -> list[int]:
    """Places of what HDF5 itself wrote: no numbers of ours, and no zeros among zeros."""
    ours: set[int] = set()

    def add(_: str, item: Any) -> None:
        start = item.id.get_offset() if isinstance(item, h5py.Dataset) else None
        if start and item.dtype.kind != "O":
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
        if kind == "packed":
            with h5py.File(path, "r+") as file:
                for name in ARRAYS:
                    packed(file, name, "shuffle and gzip")
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
    made = {kind: sound(kind, folder / kind) for kind in KINDS}
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


def check(
    reading: Reading,
    sounds: dict[str, Sound],
    make: Callable[[Sound, random.Random], Path],
    examples: int,
    first: int,
) -> None:
    """Read so many inputs that `make` draws, none of them with a traceback or without an end."""
    before = reading.tally.outcomes.total()

    @seed(first)
    @settings(max_examples=examples, derandomize=False, database=None)
    @given(kind=st.sampled_from(sorted(sounds)), draw=st.integers(0, 2**32))
    def read(kind: str, draw: int) -> None:
        reading.of(kind, make(sounds[kind], random.Random(draw)))

    read()
    assert reading.tally.outcomes.total() - before >= examples
    print(reading.tally)


def check_bytes(
    reading: Reading, sounds: dict[str, Sound], folder: Path, examples: int, first: int
) -> None:
    def make(made: Sound, draw: random.Random) -> Path:
        damage = draw.choice([changed, changed, changed, moved, cut])
        return put(made, damage(made.folder[made.damaged], made.places, draw), folder)

    check(reading, sounds, make, examples, first)


def test_bytes(reading: Reading, sounds: dict[str, Sound], tmp_path: Path) -> None:
    check_bytes(reading, sounds, tmp_path / "f", 60, first=0)


# Structure


Edit = Callable[[h5py.File, random.Random], None]
PARTS = ("views", "clean", "crc32")
ARRAYS = [f"embeddings/{layer}/{part}" for layer in WIDTHS for part in PARTS]
ARRAYS += ["samples/done", "samples/label"]
GROUPS = ["embeddings", "samples", *(f"embeddings/{layer}" for layer in WIDTHS)]
TYPES = ["f2", "f4", ">f4", "f8", "i1", "u1", "i8", "u4", "?", "S3", "c8", h5py.string_dtype()]
SHAPES = [(), (0,), (CLEAN,), (CLEAN - 1,), (CLEAN + 1,), (CLEAN, 2), (2, CLEAN), (3, 2, 2, 2)]
VALUES = [
    *(7, -1, 2.5, True, "", "text", "lidar-features", "{}", "[]", '{"layers": [1]}', b"\xff"),
    *(np.arange(3), np.array(["a", "b"], "S"), np.ones(0), h5py.Empty("f4"), 2**63),
]
PACKINGS: dict[str, dict[str, Any]] = {
    "chunks": {"chunks": True},
    "chunks of one": {"chunks": 1},
    "gzip": {"compression": "gzip"},
    "lzf": {"compression": "lzf"},
    "shuffle and gzip": {"shuffle": True, "compression": "gzip"},
    "checksums of its own": {"fletcher32": True},
    "that can grow": {"maxshape": None},
}


def packed(file: h5py.File, name: str, how: str) -> None:
    """The same numbers, stored otherwise."""
    values, more = file[name][()], dict(PACKINGS[how])
    if more.get("chunks") == 1:
        more["chunks"] = (1,) * values.ndim
    if "maxshape" in more:
        more["maxshape"] = (None,) * values.ndim
    del file[name]
    file.create_dataset(name, data=values, **more)


def repack(file: h5py.File, draw: random.Random) -> None:
    packed(file, draw.choice(ARRAYS), draw.choice(sorted(PACKINGS)))


def replace(file: h5py.File, draw: random.Random) -> None:
    """An array of any shape and type."""
    del file[name := draw.choice([*ARRAYS, *GROUPS])]
    file.create_dataset(name, draw.choice([*SHAPES, None]), draw.choice(TYPES))


def refill(file: h5py.File, draw: random.Random) -> None:
    array = file[draw.choice(ARRAYS)]
    array[draw.randrange(len(array)) :] = draw.choice([0, 1, 2, 127])


def remove(file: h5py.File, draw: random.Random) -> None:
    del file[draw.choice([*ARRAYS, *GROUPS, "samples/id"])]


def rename(file: h5py.File, draw: random.Random) -> None:
    """A layer under another name, or there twice."""
    new = draw.choice(["other", "a b", "é", "\x1b[2J", "a" * 3000])
    draw.choice([file.move, file.copy])(
        f"embeddings/{draw.choice(list(WIDTHS))}", f"embeddings/{new}"
    )


def attribute(file: h5py.File, draw: random.Random) -> None:
    name = draw.choice(["format", "version", "provenance", "share"])
    if draw.random() < 0.2:
        file.attrs.pop(name, None)
    else:
        file.attrs[name] = draw.choice(VALUES)


def link(file: h5py.File, draw: random.Random) -> None:
    """To something of the file, to nothing, or in a circle."""
    name, to = draw.choice([*ARRAYS, *GROUPS]), draw.choice([*ARRAYS, *GROUPS, "/", "nothing"])
    target = draw.choice([h5py.SoftLink, file.get])(to)
    del file[name]
    file[name] = h5py.SoftLink(to) if target is None else target


EDITS: list[Edit] = [repack, replace, refill, remove, rename, attribute, link]


def check_edits(
    reading: Reading, sounds: dict[str, Sound], folder: Path, examples: int, first: int
) -> None:
    def make(made: Sound, draw: random.Random) -> Path:
        path = put(made, None, folder)
        with h5py.File(folder / made.damaged, "r+") as file:
            for edit in draw.choices(EDITS, k=draw.choice([1, 1, 2])):
                # The file has no labels, or the edit before left nothing to this one.
                with suppress(KeyError, ValueError, TypeError, AttributeError, RuntimeError):
                    edit(file, draw)
        return path

    check(reading, sounds, make, examples, first)


def test_structure(reading: Reading, sounds: dict[str, Sound], tmp_path: Path) -> None:
    check_edits(reading, sounds, tmp_path / "f", 60, first=0)


@pytest.mark.nightly
@pytest.mark.parametrize("first", range(1, 21))
def test_many(first: int, reading: Reading, sounds: dict[str, Sound], tmp_path: Path) -> None:
    check_bytes(reading, sounds, tmp_path / "f", 200, first)
    check_edits(reading, sounds, tmp_path / "f", 200, first)


@pytest.mark.parametrize("how", PACKINGS)
def test_numbers_stored_otherwise_are_the_same(
    how: str, reading: Reading, sounds: dict[str, Sound], tmp_path: Path
) -> None:
    path = put(sounds["complete"], None, tmp_path / "f")
    with h5py.File(path, "r+") as file:
        for name in ARRAYS:
            packed(file, name, how)
    assert reading.of("complete", path) == "same"
