"""WebDataset, Hugging Face and torchvision: the images of their shards and sets, or one line."""

from __future__ import annotations

import ast
import io
import json
import pickle
import shlex
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make import PHOTO, checkpoint, crop, encoded, image_folder, size
from numpy.typing import NDArray
from reading import assert_crops, decoded, number, opened, refused

from lidar_cli.checkpoints.open import open_checkpoint
from lidar_cli.errors import InputError, MissingExtra, SettingsError
from lidar_cli.extraction.plan import image_size
from lidar_cli.settings import SampleSettings

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
        dataset = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
        (folder / "data").mkdir(parents=True, exist_ok=True)
        dataset.to_parquet(folder / f"data/{split}-00000-of-00001.parquet")
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


def saved(folder: Path, columns: dict[str, tuple[Any, list[Any]]]) -> Path:
    """A set of one parquet file: column -> its type and values."""
    import datasets

    folder.mkdir()
    features = datasets.Features({name: kind for name, (kind, _) in columns.items()})
    rows = {name: values for name, (_, values) in columns.items()}
    datasets.Dataset.from_dict(rows, features).to_parquet(folder / "train.parquet")
    return folder


def pictures(first: int = 0) -> tuple[Any, list[Any]]:
    """A column of type Image with crops `first` to `first` + 3."""
    import datasets

    indices = range(first, first + 4)
    return datasets.Image(), [
        {"bytes": encoded(crop(i, *size(i))), "path": f"{i:03}.png"} for i in indices
    ]


def test_the_one_column_of_images_need_not_be_named(hub: Path) -> None:
    from datasets import ClassLabel, Value

    columns = {
        "text": (Value("string"), list("wxyz")),
        "img": pictures(),
        "fine": (ClassLabel(names=["a", "b"]), [0, 1, 1, 0]),
    }
    samples = opened(f"hfds/{saved(hub / 'set', columns)}", 4)
    assert_crops(samples)
    assert samples.labels == [[0, 1, 1, 0][number(name)] for name in samples.ids]
    assert not samples.remarks


def test_columns_of_images_are_chosen_by_name(hub: Path) -> None:
    from datasets import Value

    data = f"hfds/{saved(hub / 'two', {'left': pictures(), 'right': pictures(4)})}"
    text = refused(data)
    assert text == (
        f"--data {data}: several columns are of type Image; name one with --image-column; its "
        "columns: left (Image), right (Image)"
    )
    for column, indices in {"left": range(4), "right": range(4, 8)}.items():
        samples = opened(data, 4, image_column=column)
        assert sorted(map(number, samples.ids)) == list(indices)
        assert_crops(samples)
    with pytest.raises(SettingsError, match=r"--image-column lefft: .*did you mean left"):
        opened(data, 1, image_column="lefft")
    none = f"hfds/{saved(hub / 'none', {'x': (Value('int64'), [1, 2])})}"
    assert refused(none).endswith(
        "no column is of type Image; name one with --image-column; its columns: x (int64)"
    )
    assert "the column 'x' holds no images: " in refused(none, image_column="x")
    both = f"hfds/{saved(hub / 'both', {'image': pictures(), 'mask': pictures(4)})}"
    samples = opened(both, 4)
    assert_crops(samples)
    assert sorted(map(number, samples.ids)) == [0, 1, 2, 3]
    assert samples.remarks == ["images are of the column 'image'; mask: see --image-column"]


def test_bytes_of_images_can_be_named(hub: Path) -> None:
    from datasets import Value

    content = [encoded(crop(i)) for i in range(3)]
    data = f"hfds/{saved(hub / 'set', {'jpg': (Value('binary'), content)})}"
    actual = {image.tobytes() for image in decoded(opened(data, 3, image_column="jpg"))}
    assert actual == {crop(i).tobytes() for i in range(3)}


def test_labels_that_are_words_are_numbered(hub: Path) -> None:
    from datasets import Value

    words = ["dog", "ant", None, "dog"]
    data = f"hfds/{saved(hub / 'set', {'image': pictures(), 'label': (Value('string'), words)})}"
    samples = opened(data, 4)
    assert samples.labels == [[1, 0, -1, 1][number(name)] for name in samples.ids]


def test_a_label_column_is_chosen_by_name(hub: Path) -> None:
    from datasets import ClassLabel, Sequence, Value

    columns = {
        "image": pictures(),
        "fine": (ClassLabel(num_classes=5), [4, 0, 3, None]),
        "coarse": (ClassLabel(num_classes=2), [1, 0, 1, 0]),
        "year": (Value("int32"), [1999, 2000, -1, 2000]),
        "boxes": (Sequence(Value("float32")), [[1.0], [], [2.0], []]),
    }
    data = f"hfds/{saved(hub / 'set', columns)}"
    samples = opened(data, 4)
    assert samples.labels is None
    assert samples.remarks == [
        "no labels: fine, coarse are of type ClassLabel; choose --label-column"
    ]
    for column, expected in {"fine": [4, 0, 3, -1], "year": [1999, 2000, -1, 2000]}.items():
        samples = opened(data, 4, label_column=column)
        assert samples.labels == [expected[number(name)] for name in samples.ids]
        assert not samples.remarks
    text = refused(data, label_column="boxes")
    assert "the column 'boxes' holds no class numbers or names; its columns: image (Image)" in text
    with pytest.raises(SettingsError, match=r"--label-column corse: .*did you mean coarse"):
        opened(data, 1, label_column="corse")


def test_labels_of_a_shape_that_is_none_are_said(hub: Path) -> None:
    from datasets import Sequence, Value

    boxes = (Sequence(Value("int64")), [[1], [2, 3], [], [4]])
    samples = opened(f"hfds/{saved(hub / 'set', {'image': pictures(), 'label': boxes})}", 4)
    assert samples.labels is None
    assert samples.remarks[0].startswith("no labels: the column 'label' holds ")


def test_a_set_that_was_saved_to_disk(hub: Path) -> None:
    import datasets

    parts = {}
    for split, indices in {"train": range(4), "test": range(4, 8)}.items():
        _, cells = pictures(indices[0])
        parts[split] = datasets.Dataset.from_dict(
            {"image": cells, "label": [i % 3 for i in indices]},
            datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")}),
        )
    datasets.DatasetDict(parts).save_to_disk(hub / "both")
    parts["test"].save_to_disk(hub / "one")
    for data, options in (("both", {"split": "test"}), ("one", {})):
        samples = opened(f"hfds/{hub / data}", 4, **options)
        assert sorted(map(number, samples.ids)) == [4, 5, 6, 7]
        assert samples.labels == [number(name) % 3 for name in samples.ids]
        assert_crops(samples)
    assert "no split 'val' in it; it has train, test" in refused(f"hfds/{hub}/both", split="val")
    assert "no split 'test' in it; it has train" in refused(f"hfds/{hub}/one", split="test")


def test_a_folder_as_a_hugging_face_set(hub: Path) -> None:
    folder = image_folder(hub / "set/train", 6, ["a", "b"])
    samples = opened(f"hfds/{folder.parent}", 6)
    assert samples.labels == [number(name) % 2 for name in samples.ids]
    assert_crops(samples)


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
    actual = {image.tobytes() for image in decoded(samples)}
    assert actual == {crop(i, *size(i)).tobytes() for i in range(6)}
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
    assert samples.image_size == 32
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
    for name, split in (("CIFAR10", "train=True"), ("SVHN", "split='train'"), ("EuroSAT", "")):
        text = refused(f"torch/{name}", data_dir=tmp_path)
        said, _, command = text.partition(":  python -c ")
        assert said.startswith(f"--data torch/{name}: {tmp_path} does not hold {name}, or not all")
        (code,) = shlex.split(command)  # what downloads it is a program that parses
        (call,) = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
        words = [ast.unparse(word) for word in (*call.args, *call.keywords)]
        given = [text for text in (repr(str(tmp_path)), split, "download=True") if text]
        assert (ast.unparse(call.func), words) == (name, given)


def test_images_smaller_than_the_usual_size_are_said(
    tmp_path: Path, fashion: NDArray[np.uint8]
) -> None:
    description = open_checkpoint(checkpoint(tmp_path / "a.pt")).description
    samples = opened("torch/fashionmnist", 6, data_dir=tmp_path)
    size, assumed = image_size(SampleSettings(), description, samples)
    assert (size, assumed and assumed.why) == (
        224, "usual; the images have 28 px; --image-size sets it"
    )  # fmt: skip


def idx(path: Path, values: NDArray[np.uint8]) -> None:
    """A file of the form that MNIST and its kin have."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    path.write_bytes(head + values.tobytes())


@pytest.fixture
def fashion(tmp_path: Path) -> NDArray[np.uint8]:
    """FashionMNIST of six training and two test images, [8, 28, 28]."""
    images = np.stack([crop(i, 28, 28)[..., 0] for i in range(8)])
    for name, part in {"train": slice(0, 6), "t10k": slice(6, 8)}.items():
        idx(tmp_path / f"FashionMNIST/raw/{name}-images-idx3-ubyte", images[part])
        labels = np.arange(8, dtype=np.uint8)[part] % 5
        idx(tmp_path / f"FashionMNIST/raw/{name}-labels-idx1-ubyte", labels)
    return images


@pytest.mark.parametrize("name", ["FashionMNIST", "fashion_mnist", "fashionmnist", "Fashion-MNIST"])
def test_a_torchvision_set_by_its_class_name(
    tmp_path: Path, fashion: NDArray[np.uint8], name: str
) -> None:
    samples = opened(f"torch/{name}", 6, data_dir=tmp_path)
    assert samples.image_size == 28
    assert samples.labels is not None
    for i, sample in enumerate(samples.ids):
        index = int(sample.rpartition("/")[2])
        assert np.array_equal(samples.decode(i).numpy()[..., 1], fashion[index])
        assert samples.labels[i] == index % 5
    for split in ("test", "val"):
        assert "holds 2 images" in refused(f"torch/{name}", 3, data_dir=tmp_path, split=split)
    # Another split is never taken for the one that is asked for.
    text = refused(f"torch/{name}", data_dir=tmp_path, split="holdout")
    assert text.endswith("no split 'holdout'; it has train and test")


def test_an_unknown_torchvision_set_lists_those_that_are_known(tmp_path: Path) -> None:
    from torchvision import datasets

    from lidar_cli.data.torchvision import NAMES

    text = refused("torch/fashon_mnist", data_dir=tmp_path)
    begin, _, listed = text.partition("; nearest first: ")
    assert begin == "--data torch/fashon_mnist: no data set of torchvision of that name"
    assert listed.startswith("FashionMNIST, ")
    assert sorted(listed.split(", ")) == sorted(NAMES)
    assert all(hasattr(datasets, name) for name in NAMES)


def test_a_torchvision_set_that_keeps_its_files(tmp_path: Path) -> None:
    image_folder(tmp_path / "eurosat/2750", 6, ["Forest", "River"])
    samples = opened("torch/EuroSAT", 6, data_dir=tmp_path)
    assert samples.labels == [number(name) % 2 for name in samples.ids]
    assert_crops(samples)
    text = refused("torch/EuroSAT", data_dir=tmp_path, split="test")
    assert text.endswith("EuroSAT has no splits; leave out --split")


def test_a_torchvision_set_with_splits_of_its_own(tmp_path: Path) -> None:
    for i in range(6):
        path = tmp_path / f"gtsrb/GTSRB/Training/{i % 3:05}/{i:03}.ppm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(crop(i, *size(i)), "PPM"))
    samples = opened("torch/gtsrb", 6, data_dir=tmp_path)
    assert samples.image_size is None
    assert samples.labels is not None
    images = {crop(i, *size(i)).tobytes(): i for i in range(6)}
    actual = [images[image.tobytes()] for image in decoded(samples)]
    assert sorted(actual) == list(range(6))
    assert samples.labels == [i % 3 for i in actual]
    assert "cannot be loaded: Unknown value 'val'" in refused(
        "torch/gtsrb", data_dir=tmp_path, split="val"
    )


def test_a_torchvision_folder_with_links_to_a_parent_ends(tmp_path: Path) -> None:
    image_folder(tmp_path, 6, ["a", "b"])
    for name in "ab":
        (tmp_path / name / "up").symlink_to("..")
    samples = opened("torch/ImageFolder", 6, data_dir=tmp_path)
    assert samples.labels == [number(name) % 2 for name in samples.ids]
    assert_crops(samples)


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


@pytest.mark.parametrize("asked", ["val", "valid", "validation"])
def test_the_validation_split_of_country211(asked: str, tmp_path: Path) -> None:
    for split, count in (("train", 4), ("valid", 3), ("test", 2)):
        image_folder(tmp_path / "country211" / split / "AD", count)
    samples = opened("torch/Country211", 3, data_dir=tmp_path, split=asked)
    assert [name.split("/")[:2] for name in samples.ids] == [["country211", "valid"]] * 3
