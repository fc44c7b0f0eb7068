"""Every kind of image data gives a stable list of samples that decode right, or one clear line."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import sys
import tarfile
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from make import crop, encoded, image_folder, size
from numpy.typing import NDArray
from PIL import Image

from lidar_cli.errors import InputError, MissingExtra
from lidar_cli.samples import Samples, open_samples
from lidar_cli.settings import SampleSettings

Pixels = NDArray[np.uint8]


def opened(data: object, n: int, **more: Any) -> Samples:
    return open_samples(SampleSettings(data=str(data), n_samples=n, **more))


def decoded(samples: Samples) -> list[Pixels]:
    return [samples.decode(i).numpy() for i in range(len(samples))]


def number(name: str) -> int:
    """The index from which the file was made, as its name tells."""
    return int(Path(name).stem)


def assert_crops(samples: Samples, index_of: Callable[[str], int] = number) -> None:
    """Each sample is the very crop that its id tells."""
    for i, name in enumerate(samples.ids):
        index = index_of(name)
        assert np.array_equal(samples.decode(i).numpy(), crop(index, *size(index))), name


def refused(data: object, n: int = 1, **more: Any) -> str:
    with pytest.raises(InputError) as caught:
        opened(data, n, **more)
    text = str(caught.value)
    assert "\n" not in text
    return text


# Folders


def test_a_folder_of_classes_has_labels(tmp_path: Path) -> None:
    samples = opened(image_folder(tmp_path / "set", 9, ["cat", "dog 2", "dog 10"]), 9)
    assert sorted(samples.ids) == sorted(
        f"{['cat', 'dog 2', 'dog 10'][i % 3]}/{i:03}.png" for i in range(9)
    )
    assert samples.labels == [number(name) % 3 for name in samples.ids]  # in natural order
    assert_crops(samples)


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    samples = opened(image_folder(tmp_path, 5), 5)
    assert samples.labels is None
    assert sorted(samples.ids) == [f"{i:03}.png" for i in range(5)]
    assert_crops(samples)


def test_splits_are_folders(tmp_path: Path) -> None:
    image_folder(tmp_path / "train", 6, ["a", "b"])
    image_folder(tmp_path / "val", 4)
    assert sorted(map(number, opened(tmp_path, 6).ids)) == [0, 1, 2, 3, 4, 5]
    assert opened(tmp_path, 6, split="training").ids == opened(tmp_path, 6).ids
    for name in ("val", "validation", "valid"):
        assert sorted(opened(tmp_path, 4, split=name).ids) == [f"{i:03}.png" for i in range(4)]
    text = refused(tmp_path, split="holdout")
    assert text == f"--data {tmp_path}: no split 'holdout' in it; leave out --split to use all"
    # Another split of the data is never taken for the one that was asked for.
    assert "no split 'test'" in refused(tmp_path, split="test")


def test_a_folder_without_splits_is_the_training_set(tmp_path: Path) -> None:
    image_folder(tmp_path, 4, ["a", "b"])
    assert len(opened(tmp_path, 4)) == 4
    assert "no split 'train'" in refused(tmp_path, split="train")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("absent", "no such file or folder; expected an image folder, a .tar file, wds/NAME"),
        ("empty", "no images could be listed: Found 0 images"),
        ("words.txt", "a file, and not a .tar; expected a folder of images"),
    ],
)
def test_data_that_is_none(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "words.txt").write_text("words")
    assert refused(tmp_path / name).startswith(f"--data {tmp_path / name}: {text}")


def test_more_than_there_is(tmp_path: Path) -> None:
    image_folder(tmp_path, 5)
    told = f"--data {tmp_path}: holds 5 images, 6 were asked for; lower -n"
    assert refused(tmp_path, 6) == told
    assert refused(tmp_path, 2, clean_samples=6) == told
    assert len(opened(tmp_path, 2, clean_samples=5)) == 5


# Odd files


def _save(image: Image.Image, path: Path, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


PHOTO = crop(3, 20, 30)
GREY = PHOTO[:, :, 1]
ALPHA = (np.arange(600).reshape(20, 30) % 256).astype(np.uint8)


def _palette(transparent: bool) -> tuple[Image.Image, Pixels]:
    image = Image.fromarray(PHOTO).quantize(16)
    colours = np.array(image.getpalette()).reshape(-1, 3)[np.array(image)].astype(np.uint8)
    if transparent:
        image.info["transparency"] = bytes([0, 128] + [255] * 14)
    return image, colours


GOOD: dict[str, Callable[[Path], Pixels]] = {}


def good(name: str) -> Callable[[Callable[[Path], Pixels]], Callable[[Path], Pixels]]:
    """Register a maker of the file `name`, which returns what it must decode to."""

    def keep(make: Callable[[Path], Pixels]) -> Callable[[Path], Pixels]:
        GOOD[name] = make
        return make

    return keep


@good("grey.png")
def _(path: Path) -> Pixels:
    _save(Image.fromarray(GREY), path)
    return np.stack([GREY] * 3, axis=2)


@good("grey with alpha.png")
def _(path: Path) -> Pixels:
    _save(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)]), path)
    return np.stack([GREY] * 3, axis=2)


@good("black and white.png")
def _(path: Path) -> Pixels:
    bits = GREY > 100
    _save(Image.fromarray(bits), path)
    return np.stack([bits.astype(np.uint8) * 255] * 3, axis=2)


@good("palette.png")
def _(path: Path) -> Pixels:
    image, colours = _palette(transparent=False)
    _save(image, path)
    return colours


@good("palette, transparent.png")
def _(path: Path) -> Pixels:
    image, colours = _palette(transparent=True)
    _save(image, path)
    return colours


@good("rgba.png")
def _(path: Path) -> Pixels:
    _save(Image.fromarray(np.dstack([PHOTO, ALPHA])), path)
    return PHOTO


@good("cmyk.jpg")
def _(path: Path) -> Pixels:
    _save(Image.fromarray(PHOTO).convert("CMYK"), path, quality=100, subsampling=0)
    return PHOTO  # within what JPEG loses


@good("one pixel.png")
def _(path: Path) -> Pixels:
    _save(Image.fromarray(PHOTO[:1, :1]), path)
    return PHOTO[:1, :1]


@good("UPPER.PNG")
def _(path: Path) -> Pixels:
    _save(Image.fromarray(PHOTO), path)
    return PHOTO


@good("déjà vu 写真 \N{CAT}.png")
def _(path: Path) -> Pixels:
    _save(Image.fromarray(PHOTO), path)
    return PHOTO


@good("a/b/c/nested.png")
def _(path: Path) -> Pixels:
    _save(Image.fromarray(PHOTO), path)
    return PHOTO


@good("truly a PNG.jpg")
def _(path: Path) -> Pixels:
    path.write_bytes(encoded(PHOTO))
    return PHOTO


@pytest.mark.parametrize("name", GOOD)
def test_odd_but_good_files(tmp_path: Path, name: str) -> None:
    expected = GOOD[name](tmp_path / name)
    samples = opened(tmp_path, 1)
    assert samples.ids == [name]
    found = samples.decode(0)
    assert found.dtype == torch.uint8
    assert found.shape == expected.shape
    tolerance = 12 if name.endswith("cmyk.jpg") else 0
    assert np.abs(found.numpy().astype(int) - expected).mean() <= tolerance / 4
    assert np.abs(found.numpy().astype(int) - expected).max() <= tolerance


def _truncated(path: Path) -> None:
    whole = encoded(crop(1, 200, 200), "JPEG")
    path.write_bytes(whole[: len(whole) // 2])


BAD: dict[str, Callable[[Path], Any]] = {
    "words.jpg": lambda path: path.write_text("these are words, not pixels\n" * 20),
    "truncated.jpg": _truncated,
    "truncated.png": lambda path: path.write_bytes(encoded(PHOTO)[:200]),
    "empty.jpg": lambda path: path.write_bytes(b""),
    "too large.png": lambda path: _save(Image.new("1", (20000, 10000)), path),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named(tmp_path: Path, name: str) -> None:
    BAD[name](tmp_path / name)
    samples = opened(tmp_path, 1)
    with pytest.raises(InputError) as caught:
        samples.decode(0)
    begin = f"{name} (in {tmp_path}): cannot be decoded as an image: "
    assert str(caught.value).startswith(begin)
    assert str(caught.value).endswith(
        "; repair or remove it, or leave out what is bad with --bad-samples skip"
    )
    assert "\n" not in str(caught.value)
    assert "0x" not in str(caught.value)  # an object's address helps nobody


def test_a_bad_file_stops_nothing_else(tmp_path: Path) -> None:
    image_folder(tmp_path, 4)
    (tmp_path / "bad.png").write_bytes(b"bad")
    samples = opened(tmp_path, 5)
    bad = samples.ids.index("bad.png")
    for i in set(range(5)) - {bad}:
        samples.decode(i)  # and not, as in timm's own data set, its neighbour's content
        index = number(samples.ids[i])
        assert np.array_equal(samples.decode(i).numpy(), crop(index, *size(index)))


def test_a_file_that_vanished_is_named(tmp_path: Path) -> None:
    samples = opened(image_folder(tmp_path, 2), 2)
    (tmp_path / samples.ids[1]).unlink()
    with pytest.raises(InputError, match=samples.ids[1]):
        samples.decode(1)


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    image_folder(tmp_path, 2)
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    assert "link.png" in refused(tmp_path, 3)


def test_a_name_that_is_no_text_can_be_hashed_and_stored(tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")  # noqa: PTH118
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(encoded(PHOTO))
    samples = opened(tmp_path, 1)
    assert samples.ids == ["caf\\xe9.png"]
    assert len(samples.fingerprint) == 64
    assert np.array_equal(samples.decode(0).numpy(), PHOTO)


SOUND = {kind: encoded(crop(2, 24, 24), kind) for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP")}


@given(
    kind=st.sampled_from(sorted(SOUND)),
    damage=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8),
    end=st.floats(0, 1),
)
def test_damaged_bytes_decode_or_are_refused(
    kind: str, damage: list[tuple[float, int]], end: float
) -> None:
    content = bytearray(SOUND[kind])
    for at, value in damage:
        content[int(at * (len(content) - 1))] = value
    content = content[: max(1, int(end * len(content)))] if end < 0.9 else content
    samples = Samples("set", ["x"], None, lambda i: bytes(content))
    with warnings.catch_warnings(), contextlib.suppress(InputError):
        warnings.simplefilter("ignore")  # Pillow's remarks on what it could mend
        image = samples.decode(0)
        assert image.dtype == torch.uint8
        assert image.dim() == 3
        assert image.shape[2] == 3


# The draw


def test_a_smaller_n_is_a_prefix(tmp_path: Path) -> None:
    image_folder(tmp_path, 20, ["a", "b"])
    whole = opened(tmp_path, 20, seed=5)
    for n in (1, 7, 19):
        part = opened(tmp_path, n, seed=5)
        assert part.ids == whole.ids[:n]
        assert whole.labels is not None
        assert part.labels == whole.labels[:n]
    assert opened("embedded", 30).ids == opened("embedded", 50).ids[:30]


def test_the_seed_decides_the_draw(tmp_path: Path) -> None:
    image_folder(tmp_path, 20)
    one, same, other = (opened(tmp_path, 10, seed=seed) for seed in (1, 1, 2))
    assert one.ids == same.ids
    assert one.fingerprint == same.fingerprint
    assert one.ids != other.ids
    assert one.fingerprint != other.fingerprint
    assert sorted(opened(tmp_path, 20, seed=1).ids) == sorted(opened(tmp_path, 20, seed=-7).ids)


def test_the_draw_is_not_the_order_of_the_files(tmp_path: Path) -> None:
    samples = opened(image_folder(tmp_path, 20, ["a", "b"]), 20)
    assert list(samples.ids) != sorted(samples.ids)


def test_the_fingerprint_changes_with_the_files(tmp_path: Path) -> None:
    image_folder(tmp_path / "one", 4)
    image_folder(tmp_path / "two", 4)
    before = opened(tmp_path / "one", 4).fingerprint
    assert opened(tmp_path / "two", 4).fingerprint == before  # the place does not matter
    with (tmp_path / "one/002.png").open("ab") as file:
        file.write(b"\0")
    grown = opened(tmp_path / "one", 4).fingerprint
    (tmp_path / "two/002.png").rename(tmp_path / "two/002x.png")
    renamed = opened(tmp_path / "two", 4).fingerprint
    assert len({before, grown, renamed}) == 3


def test_embedded_images_are_their_own_size() -> None:
    samples = opened("embedded", 3)
    assert samples.labels is not None
    assert {samples.decode(i).shape for i in range(3)} == {(samples.image_size,) * 2 + (3,)}
    assert open_samples(SampleSettings(n_samples=3)).ids == samples.ids
    assert "holds" in refused("embedded", 10**6)


# Tar files


def tar_of(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w") as file:
        for member in sorted(folder.rglob("*.png")):
            file.add(member, str(member.relative_to(folder)))
    return path


def test_a_tar_file(tmp_path: Path) -> None:
    tar = tar_of(image_folder(tmp_path / "set", 9, ["a", "b", "c"]), tmp_path / "set.tar")
    samples = opened(tar, 9)
    assert samples.labels == [number(name) % 3 for name in samples.ids]
    assert_crops(samples)


def test_a_flat_tar_file_has_no_labels(tmp_path: Path) -> None:
    samples = opened(tar_of(image_folder(tmp_path / "set", 3), tmp_path / "set.tar"), 3)
    assert samples.labels is None


def test_a_tar_file_of_tar_files(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "set", 8, ["a", "b"])
    with tarfile.open(tmp_path / "outer.TAR", "w") as outer:
        for name in ("a", "b"):
            outer.add(tar_of(folder / name, tmp_path / f"{name}.tar"), f"{name}.tar")
    samples = opened(tmp_path / "outer.TAR", 8)
    assert samples.labels == [number(name) % 2 for name in samples.ids]
    assert_crops(samples)
    assert "a .tar file has no splits" in refused(tmp_path / "outer.TAR", split="val")


def test_a_broken_tar_file_is_named(tmp_path: Path) -> None:
    tar = tar_of(image_folder(tmp_path / "set", 9), tmp_path / "set.tar")
    whole = tar.read_bytes()
    tar.write_bytes(b"no tar file at all" * 100)
    assert refused(tar).startswith(f"--data {tar}: no images could be listed: ")
    tar.write_bytes(b"")
    assert refused(tar).startswith(f"--data {tar}: no images could be listed: ")
    tar.write_bytes(whole[: 5 * len(whole) // 9])
    assert refused(tar, 9).startswith(f"--data {tar}: no images could be listed: ")
    with tarfile.open(tar, "w"):
        pass
    assert refused(tar).startswith(f"--data {tar}: no images could be listed: ")
    tar.write_bytes(whole)
    samples = opened(tar, 9)
    tar.write_bytes(whole[:700])
    with pytest.raises(InputError, match=r"\.png \(in .*: the tar file ends inside it; repair"):
        decoded(samples)


@pytest.mark.parametrize("kind", ["folder", "tar", "torch", "embedded"])
def test_threads_decode_as_one_thread_does(tmp_path: Path, kind: str) -> None:
    folder = image_folder(tmp_path / "set", 24, ["a", "b"])
    if kind == "folder":
        samples = opened(folder, 24)
    elif kind == "tar":
        samples = opened(tar_of(folder, tmp_path / "set.tar"), 24)
    elif kind == "torch":
        samples = opened("torch/image_folder", 24, data_dir=folder)
    else:
        samples = opened("embedded", 24)
    serial = decoded(samples)
    order = [i % 24 for i in range(0, 24 * 7 * 5, 7)]
    with ThreadPoolExecutor(8) as pool:
        for i, image in zip(order, pool.map(samples.decode, order), strict=True):
            assert np.array_equal(image.numpy(), serial[i])


# Remembering


def test_remembering_decodes_each_once(tmp_path: Path) -> None:
    samples = opened(image_folder(tmp_path, 6, ["a", "b"]), 6)
    kept = samples.remembering(2**20)
    first = decoded(kept)
    for name in samples.ids:
        (tmp_path / name).unlink()
    assert all(np.array_equal(a, b) for a, b in zip(first, decoded(kept), strict=True))
    assert (kept.ids, kept.labels, kept.fingerprint) == (
        samples.ids,
        samples.labels,
        samples.fingerprint,
    )
    with pytest.raises(InputError, match=samples.ids[0]):
        samples.decode(0)


def test_remembering_keeps_to_its_memory(tmp_path: Path) -> None:
    samples = opened(image_folder(tmp_path, 6), 6)
    sizes = [image.nbytes for image in decoded(samples)]
    kept = samples.remembering(sizes[0] + sizes[1])
    decoded(kept)
    for name in samples.ids:
        (tmp_path / name).unlink()
    kept.decode(0)
    kept.decode(1)
    for i in range(2, 6):
        with pytest.raises(InputError, match=samples.ids[i]):
            kept.decode(i)


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


def test_sixteen_bits_of_grey_are_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    (image,) = decoded(opened(tmp_path, 1))
    found = np.asarray(image)[..., 0].astype(int)
    assert np.abs(found - ramp.astype(int) / 257).max() <= 0.5 + 1e-6
