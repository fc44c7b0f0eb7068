"""`--bad-samples`: what is left out is settled once, counted, listed, and the same for all."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from make import (
    besides_assumptions,
    checkpoint,
    crop,
    encoded,
    image_folder,
    lidar,
    lidar_here,
    size,
)
from raising import raises

from lidar_cli.data.dataset import Samples
from lidar_cli.data.open import open_samples
from lidar_cli.errors import FeatureFileError, InputError
from lidar_cli.extraction.run import extract_checkpoint
from lidar_cli.features.schema import partial_path
from lidar_cli.ranking.session import rank_directory
from lidar_cli.ranking.watch import ScoredCheckpoint, follow
from lidar_cli.runtime.progress import Progress
from lidar_cli.settings import ExtractSettings, RankSettings, SampleSettings

Shell = Callable[..., subprocess.CompletedProcess[str]]
COUNT, N, Q, SIZE = 14, 8, 3, 24
FAULTS = {  # file -> content, and the beginning of the reason
    "002.png": (b"words, not pixels", "of no known image format"),
    "005.png": (b"", "of no known image format"),
    "007.png": (encoded(crop(7))[:300], "image file is truncated"),
    "011.png": (b"\x89PNG\r\n\x1a\n" + bytes(40), ""),
}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """14 photographs of which 4 are bad."""
    folder = image_folder(tmp_path / "images", COUNT)
    for name, (content, _) in FAULTS.items():
        (folder / name).write_bytes(content)
    return folder


def drawn(data: object, n: int, **more: Any) -> Samples:
    return open_samples(SampleSettings(data=str(data), n_samples=n, **more))


def skipping(data: object, n: int, **more: Any) -> Samples:
    return drawn(data, n, bad_samples="skip", **more)


def settings_of(images: Path, **more: Any) -> dict[str, Any]:
    defaults = {"n_samples": N, "n_views": Q, "image_size": SIZE, "batch_size": 3, "device": "cpu"}
    return {"data": str(images), "bad_samples": "skip"} | defaults | more


# The draw


@pytest.mark.parametrize("seed", range(4))
def test_the_next_of_the_draw_takes_the_place_of_a_bad_one(images: Path, seed: int) -> None:
    order = drawn(images, COUNT, seed=seed).ids  # reads, and does not decode
    good = [name for name in order if name not in FAULTS]
    for n in range(1, len(good) + 1):
        samples = skipping(images, n, seed=seed)
        assert list(samples.ids) == good[:n]
        met = order[: order.index(good[n - 1]) + 1]
        assert [one.id for one in samples.bad] == [name for name in met if name in FAULTS]
        for one in samples.bad:
            assert one.reason.startswith(FAULTS[one.id][1])
    for i, name in enumerate(samples.ids):
        index = int(Path(name).stem)
        assert np.array_equal(samples.decode(i).numpy(), crop(index, *size(index)))


def test_labels_stay_with_their_images(tmp_path: Path) -> None:
    folder = image_folder(tmp_path, 9, ["a", "b", "c"])
    (folder / "b/004.png").write_bytes(b"")
    samples = skipping(folder, 8)
    assert samples.labels == [int(Path(name).stem) % 3 for name in samples.ids]


def test_without_a_bad_one_both_ways_have_the_same_samples(tmp_path: Path) -> None:
    folder = image_folder(tmp_path, 6)
    one, two = drawn(folder, 5), skipping(folder, 5)
    assert (one.ids, one.fingerprint) == (two.ids, two.fingerprint)
    assert not two.bad


def test_too_few_are_left(images: Path) -> None:
    with pytest.raises(InputError) as caught:
        skipping(images, 11)
    text = str(caught.value)
    begin = f"--data {images}: holds 10 usable images, 11 were asked for (4 bad images: "
    assert text.startswith(begin)
    assert text.endswith("; and 1 more); lower -n")
    assert sum(name in text for name in FAULTS) == 3
    with pytest.raises(InputError, match="holds 14 images, 15 were asked for; lower -n"):
        skipping(images, 15)


def test_what_cannot_even_be_read_is_bad_as_well(tmp_path: Path) -> None:
    folder = image_folder(tmp_path, 4)
    (folder / "link.png").symlink_to(tmp_path / "gone.png")
    samples = skipping(folder, 4)
    assert sorted(samples.ids) == [f"{i:03}.png" for i in range(4)]
    assert all("No such file" in one.reason for one in samples.bad)
    with pytest.raises(InputError, match=r"link\.png .*cannot be read.*--bad-samples skip"):
        drawn(folder, 5)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    folder = image_folder(tmp_path, 4)
    os.mkfifo(folder / "pipe.png")
    assert sorted(skipping(folder, 4).ids) == [f"{i:03}.png" for i in range(4)]
    with pytest.raises(InputError, match=r"pipe\.png .*: a pipe, not a file"):
        drawn(folder, 5)


@pytest.mark.parametrize("bad_samples", ["fail", "skip"])
def test_an_image_that_changes_after_it_was_read_is_refused(
    tmp_path: Path, bad_samples: str
) -> None:
    folder = image_folder(tmp_path, 3)
    samples = drawn(folder, 3, bad_samples=bad_samples)
    first = folder / samples.ids[0]
    before = first.stat()
    content = encoded(crop(99, *size(int(first.stem))))
    first.write_bytes(content)
    os.utime(first, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(InputError, match="changed since this run began; run again"):
        samples.decode(0)
    first.unlink()
    with raises(InputError, "bad-image"):
        samples.decode(0)
    samples.decode(1)


def test_streams_and_tar_files(images: Path, tmp_path: Path) -> None:
    for name in ("set.tar", "shards/s-0.tar"):
        (tmp_path / "shards").mkdir(exist_ok=True)
        with tarfile.open(tmp_path / name, "w") as file:
            for path in sorted(images.iterdir()):
                file.add(path, path.name)
            member = tarfile.TarInfo("caf\udce9.png")  # no UTF-8
            member.size = len(encoded(crop(1)))
            file.addfile(member, io.BytesIO(encoded(crop(1))))
    for data in (tmp_path / "set.tar", f"wds/{tmp_path}/shards"):
        samples = skipping(data, 11)
        sample_names = {Path(name).stem for name in samples.ids}
        left = {Path(one.id).stem for one in samples.bad}
        assert left <= {Path(name).stem for name in FAULTS}
        assert sample_names | left | {"013"} >= {f"{i:03}" for i in range(COUNT)}
        assert "caf\\xe9" in sample_names
        with pytest.raises(InputError, match="holds 11 usable images, 12 were asked for"):
            skipping(data, 12)


def test_an_empty_cell_of_a_hugging_face_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"bytes": encoded(crop(i)), "path": None} for i in range(4)]
    cells = {"image": [rows[0], None, rows[2], {"bytes": b"words", "path": None}]}
    image_set = datasets.Dataset.from_dict(cells, datasets.Features({"image": datasets.Image()}))
    (tmp_path / "set").mkdir()
    image_set.to_parquet(tmp_path / "set/train.parquet")
    samples = skipping(f"hfds/{tmp_path}/set", 2, seed=1)
    assert set(samples.ids) | {one.id for one in samples.bad} >= {"train/0", "train/2"}
    with pytest.raises(InputError, match=r"2 bad images: .*row 1 has no image in the column"):
        skipping(f"hfds/{tmp_path}/set", 3)


# What is made from it


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    def run(*words: object) -> subprocess.CompletedProcess[str]:
        options = ["-n", N, "-q", Q, "--image-size", SIZE, "--batch-size", 3, "--device", "cpu"]
        return lidar_here(*words, *options, monkeypatch=monkeypatch, capfd=capfd)

    return run


def test_the_file_counts_and_lists_them(images: Path, tmp_path: Path, shell: Shell) -> None:
    path = checkpoint(tmp_path / "a.pt")
    words = ["extract", path, "--data", images, "-o", tmp_path / "a.h5"]
    refused = shell(*words)
    assert (refused.returncode, refused.stdout) == (3, "")
    assert besides_assumptions(refused.stderr).count("\n") == 1
    assert any(name in refused.stderr for name in FAULTS)
    assert refused.stderr.rstrip().endswith("leave out what is bad with --bad-samples skip")
    done = shell(*words, "--bad-samples", "skip", "--overwrite")
    assert done.returncode == 0, done.stderr
    expected = skipping(images, N)
    line = next(line for line in done.stderr.splitlines() if "left out" in line)
    assert line.startswith(f"{images}: left out {len(expected.bad)} bad image")
    assert all(one.id in line for one in expected.bad[:3])
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["samples/id"].asstr()[:].tolist() == list(expected.ids)
        listed = file["samples/bad"].asstr()[:].tolist()
        assert listed == [[one.id, one.reason] for one in expected.bad]
        assert json.loads(file.attrs["provenance"])["bad_samples"] == len(expected.bad)
        rows = file["embeddings/projector/clean"][:]
    # The same images in a folder of good ones alone have the same embeddings.
    for name in FAULTS:
        (images / name).unlink()
    shell("extract", path, "--data", images, "-o", tmp_path / "good.h5", "--clean-samples", 10)
    with h5py.File(tmp_path / "good.h5") as file:
        assert "bad" not in file["samples"]
        places = file["samples/id"].asstr()[:].tolist()
        others = file["embeddings/projector/clean"][:][[places.index(i) for i in expected.ids]]
    assert np.abs(rows - others).max() <= 1e-5 * np.abs(rows).max()


def test_the_setting_has_its_places(images: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('bad-samples = "skip"\n')
    show = ["extract", "x.pt", "--show-config"]
    for words, more in ((["--config", "c.toml"], {}), ([], {"LIDAR_BAD_SAMPLES": "skip"})):
        actual = lidar(*show, *words, cwd=tmp_path, **more).stdout
        line = next(line for line in actual.splitlines() if line.startswith("bad_samples"))
        assert line.split()[1:3] == ["=", "skip"]
    done = lidar(*show, "--bad-samples", "drop", cwd=tmp_path)
    assert done.returncode == 2
    assert "--bad-samples drop" in done.stderr


class Stop(Exception):
    pass


class StopAfter(Progress):
    def update(self, task: str, done: int, total: int) -> None:
        if done >= 6:
            raise Stop


def test_a_resumed_file_is_of_the_same_list_bit_for_bit(images: Path, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.pt")
    outputs = [tmp_path / "whole.h5", tmp_path / "out.h5", tmp_path / "late.h5"]
    whole, out, late = (ExtractSettings(**settings_of(images, output=one)) for one in outputs)
    extract_checkpoint(path, whole)
    for settings in (out, late):
        with pytest.raises(Stop):
            extract_checkpoint(path, settings, StopAfter())
    resumed = ExtractSettings(**settings_of(images, output=outputs[1], resume=True))
    assert extract_checkpoint(path, resumed).embedded == 2
    with h5py.File(outputs[0]) as one, h5py.File(outputs[1]) as two:
        for name in ("views", "clean", "crc32"):
            key = f"embeddings/projector/{name}"
            assert np.array_equal(one[key][:], two[key][:])
        assert one["samples/bad"][:].tolist() == two["samples/bad"][:].tolist()
        assert one.attrs["provenance"] == two.attrs["provenance"]
    # An image goes bad, or is mended, between the two: other samples, and nothing is mixed.
    bad = skipping(images, N).ids[-1]
    (images / bad).write_bytes(b"")
    with pytest.raises(FeatureFileError, match=r"other settings \(bad_samples, samples_sha256"):
        extract_checkpoint(
            path, ExtractSettings(**settings_of(images, output=outputs[2], resume=True))
        )
    assert partial_path(outputs[2]).exists()


def identities(folder: Path) -> list[tuple[list[str], str]]:
    actual = []
    for path in sorted(folder.glob("*.h5")):
        with h5py.File(path) as file:
            provenance = json.loads(file.attrs["provenance"])
            actual.append((file["samples/id"].asstr()[:].tolist(), provenance["samples_sha256"]))
    return actual


@pytest.mark.parametrize("view_memory", ["auto", "0"])
def test_all_checkpoints_of_a_ranking_have_the_same_samples(
    images: Path, tmp_path: Path, view_memory: str
) -> None:
    runs = tmp_path / "runs"
    for seed in (1, 2):
        checkpoint(runs / f"{seed}.pt", seed)
    settings = RankSettings(**settings_of(images, view_memory=view_memory))
    actual = rank_directory(runs, settings)
    assert [len(group.rows) for group in actual.groups] == [2]
    expected = skipping(images, N)
    assert identities(runs / ".lidar") == [(list(expected.ids), expected.fingerprint)] * 2
    # One that comes later joins them; what is there already is read.
    stamps = {path: path.stat().st_mtime_ns for path in (runs / ".lidar").glob("*.h5")}
    checkpoint(runs / "3.pt", 3)
    actual = rank_directory(runs, settings)
    assert [len(group.rows) for group in actual.groups] == [3]
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    # Nor are there other samples without a store, nor while the directory is followed.
    values = {row.path: row.value for row in actual.groups[0].rows}
    shutil.rmtree(runs / ".lidar")
    alone = rank_directory(runs, RankSettings(**settings_of(images, store=False)))
    for row in alone.groups[0].rows:
        assert row.value == pytest.approx(values[row.path], rel=1e-9)
    followed = follow(
        runs,
        RankSettings(**settings_of(images, interval=0.01, watch_for=0.0, cache=tmp_path / "other")),
    )
    for scored in followed:
        assert isinstance(scored, ScoredCheckpoint)
        assert scored.row.value == pytest.approx(values[scored.row.path], rel=1e-9)


def test_features_of_other_samples_are_never_compared(images: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    checkpoint(runs / "1.pt", 1)
    settings = RankSettings(**settings_of(images))
    rank_directory(runs, settings)
    ((before, _),) = identities(runs / ".lidar")
    # One is mended; a second checkpoint comes; the features of the first are kept, as a file.
    shutil.copy(next((runs / ".lidar").glob("*.h5")), runs / "kept.h5")
    mended = next(one.id for one in skipping(images, N).bad)
    (images / mended).write_bytes(encoded(crop(int(Path(mended).stem))))
    (runs / "1.pt").unlink()
    checkpoint(runs / "2.pt", 2)
    actual = rank_directory(runs, settings)
    assert sorted(row.path for group in actual.groups for row in group.rows) == [
        str(runs / "2.pt"),
        str(runs / "kept.h5"),
    ]
    assert len(actual.groups) == 2
    assert mended not in before


def test_what_was_made_without_skipping_serves_where_nothing_is_bad(tmp_path: Path) -> None:
    images, runs = image_folder(tmp_path / "images", N), tmp_path / "runs"
    checkpoint(runs / "1.pt", 1)
    rank_directory(runs, RankSettings(**settings_of(images, bad_samples="fail")))
    stamps = [path.stat().st_mtime_ns for path in (runs / ".lidar").iterdir()]
    rank_directory(runs, RankSettings(**settings_of(images)))
    assert [path.stat().st_mtime_ns for path in (runs / ".lidar").iterdir()] == stamps
