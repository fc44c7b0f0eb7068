"""A folder, a tar file: a stable list of samples, drawn by seed, or one clear line."""

from __future__ import annotations

import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from make import image_folder
from reading import assert_crops, decoded, number, opened, refused

from lidar_cli.data.open import open_samples
from lidar_cli.errors import InputError
from lidar_cli.settings import SampleSettings

# Folders


def test_a_folder_of_classes_has_labels(tmp_path: Path) -> None:
    names = ["cat", "dog 10", "dog 2"]  # sorted as text, as torchvision's ImageFolder does
    samples = opened(image_folder(tmp_path / "set", 9, names), 9)
    assert sorted(samples.ids) == sorted(f"{names[i % 3]}/{i:03}.png" for i in range(9))
    assert samples.labels == [number(name) % 3 for name in samples.ids]
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
        ("empty", "no images could be listed: no file ends in .bmp, .jpeg"),
        ("words.txt", "a file, and not a .tar; expected a folder of images"),
    ],
)
def test_data_that_is_none(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "words.txt").write_text("words")
    assert refused(tmp_path / name).startswith(f"--data {tmp_path / name}: {text}")


def test_more_than_there_is(tmp_path: Path) -> None:
    image_folder(tmp_path, 5)
    message = f"--data {tmp_path}: holds 5 images, 6 were asked for; lower -n"
    assert refused(tmp_path, 6) == message
    assert refused(tmp_path, 2, clean_samples=6) == message
    assert len(opened(tmp_path, 2, clean_samples=5)) == 5


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
    cached = samples.with_cache(2**20)
    first = decoded(cached)
    for name in samples.ids:
        (tmp_path / name).unlink()
    assert all(np.array_equal(a, b) for a, b in zip(first, decoded(cached), strict=True))
    assert (cached.ids, cached.labels, cached.fingerprint) == (
        samples.ids,
        samples.labels,
        samples.fingerprint,
    )
    with pytest.raises(InputError, match=samples.ids[0]):
        samples.decode(0)


def test_remembering_keeps_to_its_memory(tmp_path: Path) -> None:
    samples = opened(image_folder(tmp_path, 6), 6)
    sizes = [image.nbytes for image in decoded(samples)]
    cached = samples.with_cache(sizes[0] + sizes[1])
    decoded(cached)
    for name in samples.ids:
        (tmp_path / name).unlink()
    cached.decode(0)
    cached.decode(1)
    for i in range(2, 6):
        with pytest.raises(InputError, match=samples.ids[i]):
            cached.decode(i)
