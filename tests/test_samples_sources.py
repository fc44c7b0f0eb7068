"""WebDataset, Hugging Face and torchvision: the images of their shards and sets, or one line."""

from __future__ import annotations

import io
import json
import pickle
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make import PHOTO, crop, encoded, image_folder, size
from numpy.typing import NDArray
from reading import assert_crops, decoded, number, opened, refused

from lidar_cli.errors import InputError, MissingExtra

# WebDataset


def write_shard(path: Path, indices: range, classes: int | None = None) -> Path:
    from webdataset import TarWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    with TarWriter(str(path)) as writer:
        for index in indices:
            fields: dict[str, Any] = {
                "__key__": f"image{index:03}",
                "png": encoded(crop(index, *size(index))),
            }
            if classes is not None:
                fields["cls"] = index % classes
            writer.write(fields)
    return path


def shard_number(name: str) -> int:
    return int(name[-3:])


def test_webdataset_shards(tmp_path: Path) -> None:
    for shard in range(3):
        write_shard(tmp_path / f"set/s-{shard}.tar", range(4 * shard, 4 * shard + 4), classes=5)
    samples = opened("wds/set", 12, data_dir=tmp_path)
    assert sorted(map(shard_number, samples.ids)) == list(range(12))
    assert samples.labels == [shard_number(name) % 5 for name in samples.ids]
    assert_crops(samples, shard_number)
    assert opened("wds/set", 5, data_dir=tmp_path).ids == samples.ids[:5]
    shards = {tuple(opened("wds/set", 4, data_dir=tmp_path, seed=s).ids) for s in range(20)}
    assert len(shards) == 3  # the seed orders the shards
    assert refused("wds/set", 13, data_dir=tmp_path).startswith("--data wds/set: holds 12 images")


def test_webdataset_without_classes_has_no_labels(tmp_path: Path) -> None:
    write_shard(tmp_path / "set/s-0.tar", range(3))
    samples = opened(f"wds/{tmp_path}/set", 3)  # an absolute path needs no --data-dir
    assert samples.labels is None
    assert_crops(samples, shard_number)


def test_webdataset_splits(tmp_path: Path) -> None:
    write_shard(tmp_path / "set/train-0.tar", range(4))
    write_shard(tmp_path / "set/train-1.tar", range(4, 8))
    write_shard(tmp_path / "set/val-0.tar", range(8, 11))
    info = {
        "splits": {
            name: {
                "name": name,
                "num_samples": sum(lengths),
                "filenames": [f"{name}-{i}.tar" for i in range(len(lengths))],
                "shard_lengths": lengths,
            }
            for name, lengths in {"train": [4, 4], "val": [3]}.items()
        }
    }
    pattern = {"data_dir": tmp_path, "split": "train-{0..1}.tar"}
    assert sorted(map(shard_number, opened("wds/set", 8, **pattern).ids)) == list(range(8))
    assert "split not found" in refused("wds/set", 3, data_dir=tmp_path, split="val")
    (tmp_path / "set/_info.json").write_text(json.dumps(info))
    assert sorted(map(shard_number, opened("wds/set", 8, data_dir=tmp_path).ids)) == list(range(8))
    held_out = opened("wds/set", 3, data_dir=tmp_path, split="val")
    assert sorted(map(shard_number, held_out.ids)) == [8, 9, 10]
    assert "split not found: split vall" in refused("wds/set", data_dir=tmp_path, split="vall")


def test_a_broken_webdataset_is_named(tmp_path: Path) -> None:
    assert "no folder" in refused("wds/set", data_dir=tmp_path)
    (tmp_path / "set").mkdir()
    assert "no .tar shards in" in refused("wds/set", data_dir=tmp_path)
    text = refused("wds/set", data_dir=tmp_path, split="s-{0..0}.tar")
    assert text.endswith("set/s-0.tar cannot be read: No such file or directory")
    shard = write_shard(tmp_path / "set/s-0.tar", range(6))
    whole = shard.read_bytes()
    for content in (b"no tar at all" * 100, b"", whole[: len(whole) // 2]):
        shard.write_bytes(content)
        text = refused("wds/set", 6, data_dir=tmp_path)
        assert text.startswith(f"--data wds/set: the shard {shard} cannot be read: ")
        assert " at 0x" not in text
    write_shard(shard, range(2))
    with tarfile.open(shard, "a") as file:
        for name, content in (("image900.png", b"bad"), ("image901.txt", b"words")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    samples = opened("wds/set", 3, data_dir=tmp_path)
    with pytest.raises(InputError, match="image900"):
        decoded(samples)


def test_a_class_that_is_no_number_is_named(tmp_path: Path) -> None:
    from webdataset import TarWriter

    (tmp_path / "set").mkdir()
    with TarWriter(str(tmp_path / "set/s-0.tar")) as writer:
        writer.write({"__key__": "a", "png": encoded(PHOTO), "cls": "cat"})
    assert "cat" in refused("wds/set", data_dir=tmp_path)


# Hugging Face


def save_parquet(folder: Path, labels: bool, column: str = "image") -> Path:
    """A data set repository as the hub holds it: parquet files with the images' bytes inside."""
    import datasets

    for split, indices in {"train": range(8), "test": range(8, 16)}.items():
        rows: dict[str, Any] = {
            column: [
                {"bytes": encoded(crop(i, *size(i))), "path": f"{i % 8:03}.png"} for i in indices
            ]
        }
        features: dict[str, Any] = {column: datasets.Image()}
        if labels:
            rows["label"] = [i % 3 for i in indices]
            features["label"] = datasets.ClassLabel(names=["a", "b", "c"])
        made = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
        (folder / "data").mkdir(parents=True, exist_ok=True)
        made.to_parquet(folder / f"data/{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for data sets; nothing is looked up on the network."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return tmp_path


def test_a_hugging_face_set(hub: Path) -> None:
    folder = save_parquet(hub / "set", labels=True)
    samples = opened(f"hfds/{folder}", 8)
    assert len(set(samples.ids)) == 8
    assert samples.labels == [number(name) % 3 for name in samples.ids]
    assert_crops(samples)
    test = opened(f"hfds/{folder}", 8, split="test")
    assert_crops(test, lambda name: number(name) + 8)
    # The names inside are the same; the images are not.
    assert test.fingerprint != samples.fingerprint


def test_a_hugging_face_set_without_labels(hub: Path) -> None:
    samples = opened(f"hfds/{save_parquet(hub / 'set', labels=False)}", 8)
    assert samples.labels is None
    assert_crops(samples)


def test_a_hugging_face_set_that_is_not_there(hub: Path) -> None:
    folder = save_parquet(hub / "set", labels=True)
    assert refused("hfds/no-such-name").startswith("--data hfds/no-such-name: cannot be loaded: ")
    assert "holds 8 images" in refused(f"hfds/{folder}", 9)
    assert "cannot be loaded" in refused(f"hfds/{folder}", split="held-out")
    picture = save_parquet(hub / "other", labels=False, column="picture")
    text = refused(f"hfds/{picture}")
    assert text.endswith("has no image in the column 'image'; its other columns: picture")


def test_a_hugging_face_set_draws_no_progress_bar_in_a_pipe(
    hub: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import datasets

    folder = save_parquet(hub / "set", labels=True)
    datasets.enable_progress_bars()
    capfd.readouterr()
    try:
        opened(f"hfds/{folder}", 8)
    finally:
        datasets.disable_progress_bars()
    assert capfd.readouterr() == ("", "")


# torchvision


def test_a_torchvision_folder(tmp_path: Path) -> None:
    image_folder(tmp_path / "one/train", 6, ["a", "b"])
    samples = opened("torch/image_folder", 6, data_dir=tmp_path / "one")
    assert samples.labels is not None
    assert set(samples.labels) == {0, 1}
    found = {image.tobytes() for image in decoded(samples)}
    assert found == {crop(i, *size(i)).tobytes() for i in range(6)}
    # Another folder of as many images is other data.
    for i in range(6):
        path = tmp_path / f"two/train/{'ab'[i % 2]}/{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(crop(i + 50)))
    other = opened("torch/image_folder", 6, data_dir=tmp_path / "two")
    assert other.fingerprint != samples.fingerprint


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NDArray[np.uint8]:
    """CIFAR-10 in its own binary form, of few images; returns those, [8, 32, 32, 3]."""
    from torchvision.datasets import CIFAR10

    images = np.stack([crop(i, 32, 32) for i in range(8)])
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    rows = images.transpose(0, 3, 1, 2).reshape(8, -1)
    names = [entry[0] for entry in (*CIFAR10.train_list, *CIFAR10.test_list)]
    for at, name in enumerate(names):
        part = slice(at, at + 1) if at < 5 else slice(5, 8)
        content = {"data": rows[part], "labels": [i % 4 for i in range(8)][part]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / CIFAR10.meta["filename"]).write_bytes(pickle.dumps({"label_names": list("abcd")}))
    # The checksums are those of the real files.
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    return images


def test_a_torchvision_set(tmp_path: Path, cifar: NDArray[np.uint8]) -> None:
    samples = opened("torch/cifar10", 5, data_dir=tmp_path)
    assert samples.labels is not None
    for i, name in enumerate(samples.ids):
        assert np.array_equal(samples.decode(i).numpy(), cifar[int(name.rpartition("/")[2])])
        assert samples.labels[i] == int(name.rpartition("/")[2]) % 4
    test = opened("torch/cifar10", 3, data_dir=tmp_path, split="val")
    assert {image.tobytes() for image in decoded(test)} == {image.tobytes() for image in cifar[5:]}


def test_a_torchvision_set_that_is_not_there(tmp_path: Path) -> None:
    assert refused("torch/cifar10") == (
        "--data torch/cifar10: needs --data-dir, the folder where torchvision keeps it"
    )
    text = refused("torch/cifar10", data_dir=tmp_path)
    assert text.startswith(f"--data torch/cifar10 in {tmp_path}: cannot be loaded: ")
    assert "cannot be loaded" in refused("torch/no_such_set", data_dir=tmp_path)


# Packages that are not installed


@pytest.mark.parametrize(("data", "package"), [("wds/x", "webdataset"), ("hfds/x", "datasets")])
def test_a_missing_extra_is_one_line(
    monkeypatch: pytest.MonkeyPatch, data: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # its import now fails as if it were absent
    with pytest.raises(MissingExtra) as caught:
        opened(data, 1)
    assert str(caught.value) == (
        f"--data {data} needs the package {package}, which is not installed; "
        "install it with: pip install 'lidar-cli[data]'"
    )
    assert caught.value.exit_status == 2
