"""HDF5 files made to read elsewhere, or to unpack beyond measure: one line each, nothing touched.

The attacks that lead elsewhere are first shown to work on plain h5py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from feature_files import CLEAN, LAYOUT, PROVENANCE, WIDTHS, complete, create, read_all, write
from make import environment
from raising import raises

from lidar_cli.errors import FeatureFileError, InputError
from lidar_cli.features.arrays import AS_IT_IS, ArrayForm
from lidar_cli.features.reader import read_hdf5, read_labels, read_provenance
from lidar_cli.features.schema import partial_path
from lidar_cli.features.writer import FeatureWriter

D = WIDTHS["projector"]
CLEAN_ROWS = "embeddings/projector/clean"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """What another folder holds: an HDF5 file with rows that would fit."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    with h5py.File(folder / "secret.h5", "w") as file:
        file["rows"] = np.full((CLEAN, D), 42, np.float32)
    return folder / "secret.h5"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "here").mkdir()
    return complete(tmp_path / "here/f.h5")


def virtual(file: h5py.File, name: str, source: str, inner: str = "rows") -> None:
    """The clean rows as a virtual dataset of a file, named as it stands."""
    layout = h5py.VirtualLayout((CLEAN, D), np.float32)
    layout[:] = h5py.VirtualSource(source, inner, (CLEAN, D))
    file.create_virtual_dataset(name, layout)


def beside(make: Callable[[Path, Path], None]) -> Callable[[h5py.File, Path], None]:
    """A virtual dataset of a name in the same folder, where what lies is no file of it."""

    def attack(file: h5py.File, secret: Path) -> None:
        make(Path(file.filename).with_name("x.h5"), secret)
        virtual(file, CLEAN_ROWS, "x.h5")

    return attack


def link(file: h5py.File, secret: Path) -> None:
    file[CLEAN_ROWS] = h5py.ExternalLink(str(secret), "/rows")


def soft_link(file: h5py.File, secret: Path) -> None:
    file["aside"] = h5py.ExternalLink(str(secret), "/rows")
    file[CLEAN_ROWS] = h5py.SoftLink("/aside")


def external(file: h5py.File, secret: Path) -> None:
    at = secret.read_bytes().index(np.float32(42).tobytes())
    where = [(str(secret), at, 4 * CLEAN * D)]
    file.create_dataset(CLEAN_ROWS, (CLEAN, D), np.float32, external=where)


def virtual_of_virtual(file: h5py.File, secret: Path) -> None:
    with h5py.File(Path(file.filename).with_name("x.h5"), "w") as between:
        virtual(between, "rows", str(secret))
    virtual(file, CLEAN_ROWS, "x.h5")


def linked_source(file: h5py.File, secret: Path) -> None:
    with h5py.File(Path(file.filename).with_name("x.h5"), "w") as between:
        between["rows"] = h5py.ExternalLink(str(secret), "/rows")
    virtual(file, CLEAN_ROWS, "x.h5")


OUTSIDE: dict[str, Callable[[h5py.File, Path], None]] = {
    "link": link,
    "soft link to a link": soft_link,
    "external storage": external,
    "virtual, absolute": lambda file, secret: virtual(file, CLEAN_ROWS, str(secret)),
    "virtual, above": lambda file, _: virtual(file, CLEAN_ROWS, "../elsewhere/secret.h5"),
    "virtual, by a pattern": lambda file, _: virtual(file, CLEAN_ROWS, "..%%/elsewhere/secret.h5"),
    "virtual, of a symbolic link": beside(lambda name, secret: name.symlink_to(secret)),
    "virtual of a virtual": virtual_of_virtual,
    "virtual, of a linked source": linked_source,
}


def everything(path: Path, form: ArrayForm = AS_IT_IS) -> None:
    for embeddings in read_hdf5(path, form=form):
        list(embeddings.chunks(10**6))


def refusal(path: Path) -> str:
    """What every reader says; it is one line, and the same."""
    messages = []
    for form in (AS_IT_IS, ArrayForm(CLEAN_ROWS)):
        with pytest.raises((FeatureFileError, InputError)) as caught:
            everything(path, form)
        messages.append(str(caught.value))
        assert messages[-1].isprintable()
        assert len(messages[-1]) < 1000
    return messages[0]


@pytest.mark.parametrize("attack", OUTSIDE)
def test_nothing_is_read_from_elsewhere(attack: str, path: Path, secret: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file[CLEAN_ROWS]
        OUTSIDE[attack](file, secret)
    if "pattern" not in attack:
        with h5py.File(path) as file:
            assert np.all(file[CLEAN_ROWS][:] == 42)
    assert "expected numbers in this file, or in files of the same" in refusal(path)


def test_a_group_behind_a_link_and_a_circle(path: Path, secret: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["embeddings/projector"]
        file["embeddings/projector"] = h5py.ExternalLink(str(secret), "/")
    assert "is a link to another place" in refusal(path)
    with h5py.File(path, "r+") as file:
        del file["embeddings/projector"]
        file["embeddings/projector"] = h5py.SoftLink("/embeddings/projector")
    assert "is a link to another place" in refusal(path)


def test_labels_are_not_read_from_elsewhere(path: Path, secret: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["samples/label"] = h5py.ExternalLink(str(secret), "/rows")
    with pytest.raises(FeatureFileError, match="is a link to another place"):
        read_labels(path)


def test_shards_beside_the_file_are_read(tmp_path: Path) -> None:
    whole = complete(tmp_path / "whole.h5")
    joined = tmp_path / "joined.h5"
    joined.write_bytes(whole.read_bytes())
    arrays = ["samples/done"]
    arrays += [f"embeddings/{layer}/{part}" for layer in WIDTHS for part in ("clean", "crc32")]
    with h5py.File(whole) as file, h5py.File(joined, "r+") as made:
        for at, rows in enumerate((slice(0, 3), slice(3, CLEAN))):
            with h5py.File(tmp_path / f"joined.h5.{at}", "w") as shard:
                for name in arrays:
                    shard[name] = file[name][rows]
        for name in arrays:
            layout = h5py.VirtualLayout(file[name].shape, file[name].dtype)
            for at, rows in enumerate((slice(0, 3), slice(3, CLEAN))):
                shape = file[name][rows].shape
                layout[rows] = h5py.VirtualSource(f"joined.h5.{at}", name, shape)
            del made[name]
            made.create_virtual_dataset(name, layout)
    for layer in WIDTHS:
        for one, two in zip(read_all(whole, layer), read_all(joined, layer), strict=True):
            assert one.equal(two)
    # HDF5 gives zeros where a shard is missing; here it is missing.
    (tmp_path / "joined.h5.1").unlink()
    assert "'joined.h5.1'" in refusal(joined)


def test_resuming_writes_into_no_other_file(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(bytes(range(256)))
    with create(tmp_path / "f.h5") as writer:
        write(writer, 0, 3)
    partial = partial_path(tmp_path / "f.h5")
    with h5py.File(partial, "r+") as file:
        rows = file[CLEAN_ROWS][:]
        del file[CLEAN_ROWS]
        where = [(str(precious), 0, rows.nbytes)]
        file.create_dataset(CLEAN_ROWS, rows.shape, np.float32, external=where)
    with pytest.raises(FeatureFileError, match="is stored in another file"):
        FeatureWriter.resume(tmp_path / "f.h5", LAYOUT, PROVENANCE)
    assert precious.read_bytes() == bytes(range(256))
    with h5py.File(partial, "r+") as file:
        file[CLEAN_ROWS][:] = 0
    assert precious.read_bytes() != bytes(range(256))


# Sizes that lie, and numbers that are none


def replaced(name: str, **how: Any) -> Callable[[h5py.File], None]:
    def attack(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, **how)

    return attack


def with_fact(**fields: Any) -> Callable[[h5py.File], None]:
    def attack(file: h5py.File) -> None:
        file.attrs["provenance"] = json.dumps({**PROVENANCE, **fields})

    return attack


def attribute(name: str, value: Any) -> Callable[[h5py.File], None]:
    return lambda file: file.attrs.__setitem__(name, value)


HUGE = 10**12
ZEROS = {"shape": (CLEAN, 2**23), "dtype": "f4", "data": np.zeros((CLEAN, 2**23), "f4")}
DEEP = "[" * 900 + "]" * 900
LIES: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "never written": (replaced(CLEAN_ROWS, shape=(HUGE, D), dtype="f4"), "declares 8,000,000,0"),
    "never written, in chunks": (
        replaced(CLEAN_ROWS, shape=(HUGE, D), dtype="f4", chunks=(100, D)),
        "declares 8,000,000,0",
    ),
    "packed zeros": (
        replaced(CLEAN_ROWS, **ZEROS, compression="gzip", compression_opts=1, chunks=(1, 2**20)),
        "declares 268,435,456 bytes",
    ),
    "a chunk beyond measure": (
        replaced(CLEAN_ROWS, shape=(CLEAN, 2**27), dtype="f4", chunks=(1, 2**27)),
        "has chunks of 536,870,912 bytes",
    ),
    "as many checksums": (
        replaced("embeddings/projector/crc32", shape=(HUGE,), dtype="u4", chunks=(1000,)),
        "declares 4,000,000,0",
    ),
    "as many samples": (
        replaced("samples/done", shape=(HUGE,), dtype="u1", chunks=(1000,)),
        "declares 1,000,000,0",
    ),
    "references": (replaced(CLEAN_ROWS, shape=(CLEAN, D), dtype=h5py.ref_dtype), "not the numbers"),
    "lists": (
        replaced(CLEAN_ROWS, shape=(CLEAN, D), dtype=h5py.vlen_dtype("f4")),
        "not the numbers",
    ),
    "text": (replaced(CLEAN_ROWS, shape=(CLEAN, D), dtype=h5py.string_dtype()), "not the numbers"),
    "records": (replaced(CLEAN_ROWS, shape=(CLEAN, D), dtype=[("a", "f4")]), "not the numbers"),
    "no array": (replaced(CLEAN_ROWS, shape=None, dtype="f4"), "where an array should be"),
    "no rows": (replaced(CLEAN_ROWS, shape=(0, D), dtype="f4"), "damaged"),
    "provenance that is a list": (attribute("provenance", "[1, 2]"), "not the record"),
    "provenance that is a number": (attribute("provenance", 7), "not a text"),
    "provenance that is an array": (attribute("provenance", np.arange(9)), "not a text"),
    "deep provenance": (attribute("provenance", f'{{"views": {DEEP}}}'), "not the record"),
    "deepest provenance": (attribute("provenance", "[" * 10**4), "damaged"),
    "provenance with NaN": (attribute("provenance", '{"seed": NaN}'), "NaN for a number"),
    "layers that are a number": (with_fact(layers=5), "layers is a int"),
    "layers without names": (with_fact(layers=[[]]), "without names"),
    "views that are text": (with_fact(views="simclr"), "views is a str"),
    "views without a name": (with_fact(views={"name": 3}), "without names"),
    "a checkpoint that is a table": (with_fact(checkpoint={}), "checkpoint is a dict"),
    "a seed that is true": (with_fact(seed=True), "seed is a bool"),
    "a version of text": (attribute("version", "1"), "feature file version 1, this lidar reads 1"),
    "a version that is an array": (attribute("version", np.ones(3)), "feature file version"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_one_line(lie: str, path: Path) -> None:
    attack, reason = LIES[lie]
    with h5py.File(path, "r+") as file:
        attack(file)
    with pytest.raises(FeatureFileError) as caught:
        everything(path)
    assert reason in str(caught.value)
    assert str(caught.value).isprintable()
    if "provenance" in lie or "version" in lie:
        with pytest.raises(FeatureFileError):
            read_provenance(path)


def test_a_long_provenance_is_refused(path: Path) -> None:
    with h5py.File(path, "r+", libver="latest") as file:
        file.attrs["provenance"] = json.dumps({"data": "x" * 2**20})
    with pytest.raises(FeatureFileError, match="too long"):
        read_provenance(path)


def test_a_format_that_is_no_text_is_another_file(path: Path) -> None:
    for value in (np.arange(3), 5, np.array(["a", "b"], "S")):
        with h5py.File(path, "r+") as file:
            file.attrs["format"] = value
        with raises(FeatureFileError, "not-a-feature-file"):
            read_provenance(path)


def test_groups_in_groups_without_end(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "deep.h5", "w") as file:
        group = file
        for _ in range(100):
            group = group.create_group("a")
        group["rows"] = np.ones((3, 2))
    with pytest.raises(FeatureFileError, match="groups in one another; name the array"):
        read_hdf5(tmp_path / "deep.h5")
    (found,) = read_hdf5(tmp_path / "deep.h5", form=ArrayForm("a/" * 100 + "rows"))
    assert found.shape == (3, 0, 2)
    with h5py.File(tmp_path / "circle.h5", "w") as file:
        file["a/b/rows"] = np.ones((3, 2))
        file["a/b/c"] = file["a"]  # a hard link back
    (found,) = read_hdf5(tmp_path / "circle.h5")
    assert found.layer == "a/b/rows"


BOUNDED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_DATA, (3 << 29, 3 << 29))
sys.argv[0] = "lidar"
runpy.run_module("lidar_cli", run_name="__main__")
"""


def test_the_program_neither_hangs_nor_swells(tmp_path: Path, secret: Path) -> None:
    """All of it at once, in a gigabyte and a half; what waits for a writer would wait for ever."""
    pipe = secret.with_name("pipe.h5")
    os.mkfifo(pipe)
    whole = complete(tmp_path / "whole.h5").read_bytes()
    attacks: dict[str, Callable[[h5py.File], None]] = {}

    def linked(file: h5py.File) -> None:
        del file[CLEAN_ROWS]
        link(file, pipe)

    def piped(file: h5py.File) -> None:
        del file[CLEAN_ROWS]
        os.mkfifo(Path(file.filename).with_name("pipe.h5"))
        virtual(file, CLEAN_ROWS, "pipe.h5")

    attacks = {"linked": linked, "piped": piped} | {lie: LIES[lie][0] for lie in LIES}
    paths = []
    for at, attack in enumerate(attacks.values()):
        paths.append(tmp_path / f"{at}.h5")
        paths[-1].write_bytes(whole)
        with h5py.File(paths[-1], "r+") as file:
            attack(file)
    command = [sys.executable, "-c", BOUNDED, "score", *map(str, paths), "--json"]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=100, env=environment(), cwd=tmp_path
    )
    errors = ended.stderr.splitlines()
    assert (ended.returncode, ended.stdout) == (3, "[]\n"), ended.stderr
    assert len(errors) == len(paths)
    for path, error in zip(paths, errors, strict=True):
        assert error.startswith(f"error: {path}: ")
