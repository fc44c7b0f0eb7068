"""Image folders as people have them: links, hidden files, deep classes, odd images."""

from __future__ import annotations

import io
import itertools
import os
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make import checkpoint, crop, encoded, image_folder, lidar_here
from numpy.typing import NDArray
from PIL import Image
from reading import number, opened, refused

from lidar_cli.data.dataset import has_more_pages
from lidar_cli.data.folders import list_folder
from lidar_cli.data.labels import folder_classes, text_labels
from lidar_cli.errors import FeatureFileError, SettingsError
from lidar_cli.extraction.run import extract_checkpoint
from lidar_cli.settings import ExtractSettings

IMAGE = encoded(crop(1))
INDICES = itertools.count()


def put(*paths: Path) -> None:
    """Image files, no two alike."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(crop(next(INDICES) % 300)))


def classes_of(data: Path, count: int, **more: Any) -> dict[str, int]:
    """Relative path -> label."""
    samples = opened(data, count, **more)
    labels = samples.labels or [-1] * count
    return dict(sorted(zip(samples.ids, labels, strict=True)))


# Links


@pytest.mark.parametrize("links", [1, 2])
def test_links_to_a_parent_give_no_duplicates(tmp_path: Path, links: int) -> None:
    image_folder(tmp_path, 10, ["cat", "dog"])
    for name in ("cat", "dog")[:links]:
        (tmp_path / name / "up").symlink_to("..")
    samples = opened(tmp_path, 10)
    assert sorted(map(number, samples.ids)) == list(range(10))
    assert samples.labels == [number(name) % 2 for name in samples.ids]
    (remark,) = samples.remarks
    assert remark.startswith(f"left out {links} link")
    assert "cat/up" in remark
    assert "holds 10 images" in refused(tmp_path, 11)


def test_links_to_what_holds_the_folder_are_not_followed(tmp_path: Path) -> None:
    image_folder(tmp_path / "set/train", 4)
    image_folder(tmp_path / "set/val", 6)
    (tmp_path / "set/train/up").symlink_to("..")
    (tmp_path / "set/train/top").symlink_to("/")
    assert sorted(map(number, opened(tmp_path / "set", 4).ids)) == [0, 1, 2, 3]
    assert "holds 4 images" in refused(tmp_path / "set", 5)


def test_links_elsewhere_are_followed_once(tmp_path: Path) -> None:
    image_folder(tmp_path / "store", 6, ["a", "b"])
    data = tmp_path / "set"
    data.mkdir()
    for link, target in (("x", "a"), ("y", "b"), ("z", "b"), ("deeper", ".")):
        (data / link).symlink_to(tmp_path / "store" / target)
    # `deeper` is the first by name, and holds both others.
    assert set(opened(data, 6).ids) == {f"deeper/{'ab'[i % 2]}/{i:03}.png" for i in range(6)}
    (data / "deeper").unlink()
    samples = opened(data, 6)
    assert set(samples.ids) == {f"{'xy'[i % 2]}/{i:03}.png" for i in range(6)}
    assert any("1 link to a folder that is listed already" in line for line in samples.remarks)
    # A folder that is itself a link, and images that are links, are read as what they lead to.
    (tmp_path / "alias").symlink_to(data)
    assert opened(tmp_path / "alias", 6).ids == samples.ids
    (data / "only.png").symlink_to(tmp_path / "store/a/000.png")
    assert "only.png" in opened(data, 7).ids


def test_a_real_path_comes_before_a_link(tmp_path: Path) -> None:
    put(tmp_path / "real/1.png", tmp_path / "real/below/2.png")
    (tmp_path / "a link").symlink_to("real/below")
    assert sorted(opened(tmp_path, 2).ids) == ["real/1.png", "real/below/2.png"]


def test_links_to_nothing_are_said(tmp_path: Path) -> None:
    put(tmp_path / "cat/1.png", tmp_path / "cat/2.png")
    (tmp_path / "dog").symlink_to(tmp_path / "not mounted")
    (tmp_path / "itself").symlink_to("itself")
    (tmp_path / ".hidden").symlink_to(".hidden")
    (tmp_path / "read me").symlink_to("cat/1.png")
    assert opened(tmp_path, 2).remarks == ["left out 2 links to nothing: dog, itself"]


def test_the_order_is_not_that_of_the_file_system(tmp_path: Path) -> None:
    names = [f"{folder}/{i}.png" for folder in ("b", "a/c", "a", "ä", "B") for i in range(5)]
    for root, order in (("one", names), ("two", names[::-1])):
        put(*(tmp_path / root / name for name in order))
        (tmp_path / root / "z").symlink_to("a")
    one, two = (list_folder(tmp_path / root) for root in ("one", "two"))
    assert one.folders == two.folders == sorted(one.folders)
    assert [one.at(i)[1] for i in range(len(one))] == sorted(names, key=lambda n: n.rsplit("/", 1))
    assert opened(tmp_path / "one", 25).ids == opened(tmp_path / "two", 25).ids


# What is no image of the user's


def test_what_editors_and_archives_leave_behind_is_left_out(tmp_path: Path) -> None:
    image_folder(tmp_path, 6, ["cat"])
    put(
        tmp_path / "cat/.ipynb_checkpoints/0-checkpoint.png",
        tmp_path / ".trash/1.png",
        tmp_path / ".trash/deep/2.png",
        tmp_path / "cat/.hidden.png",
        tmp_path / "__MACOSX/cat/._000.png",
        tmp_path / "cat/@eaDir/000.png/SYNOPHOTO_THUMB_M.jpg",
    )
    for name in ("cat/._001.png", "cat/.DS_Store", "cat/Thumbs.db", "cat/labels.txt"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7" + bytes(60))
    samples = opened(tmp_path, 6)
    assert sorted(map(number, samples.ids)) == list(range(6))
    assert samples.labels is None
    assert samples.remarks == [
        "left out 2 hidden images and 4 hidden or system folders (.ipynb_checkpoints, .trash, "
        "@eaDir, ...)"
    ]
    assert "holds 6 images" in refused(tmp_path, 7)
    # A folder that the user names is read, whatever its name.
    assert len(opened(tmp_path / ".trash", 2)) == 2


def test_an_empty_folder_names_what_is_read_and_what_is_there(tmp_path: Path) -> None:
    for name in ("1.gif", "2.GIF", "3.dcm", "read me", ".4.png", ".git/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert refused(tmp_path) == (
        f"--data {tmp_path}: no images could be listed: no file ends in .bmp, .jpeg, .jpg, .pgm, "
        ".png, .ppm, .tif, .tiff, .webp (4 other files (.gif, no suffix, .dcm); left out 1 hidden "
        "image and 1 hidden or system folder (.git))"
    )


def test_a_folder_that_cannot_be_read_is_refused_or_said(tmp_path: Path) -> None:
    put(tmp_path / "cat/1.png", tmp_path / "cat/2.png")
    back, part = os.getcwd(), "d" * 200  # noqa: PTH109 - deeper than a path can be
    try:
        os.chdir(tmp_path)
        for _ in range(25):
            os.mkdir(part)  # noqa: PTH102
            os.chdir(part)
    finally:
        os.chdir(back)
    text = refused(tmp_path)
    assert text.startswith(f"--data {tmp_path}: the folder {tmp_path}/{part}/")
    assert "cannot be read: File name too long; repair it, or leave out what is bad" in text
    (remark,) = opened(tmp_path, 2, bad_samples="skip").remarks
    assert remark.endswith("which cannot be read: File name too long")


# Classes


def test_classes_whose_last_folders_are_alike_stay_apart(tmp_path: Path) -> None:
    names = ["a/abbey", "a/apartment/outdoor", "b/bistro/indoor", "b/bistro/outdoor"]
    names += ["c/casino/indoor", "c/casino/outdoor"]
    image_folder(tmp_path, 18, names)
    samples = opened(tmp_path, 18)
    assert samples.labels == [number(name) % 6 for name in samples.ids]
    assert not samples.remarks
    by_letter = classes_of(tmp_path, 18, class_level=1)
    assert all(by_letter[name] == "abc".index(name[0]) for name in by_letter)
    last = classes_of(tmp_path, 18, class_level=-1)
    assert all(
        label == ["abbey", "indoor", "outdoor"].index(name.split("/")[-2])
        for name, label in last.items()
    )
    assert opened(tmp_path, 18, class_level=0).labels is None


@pytest.mark.parametrize(
    ("folders", "level", "expected"),
    [
        (["train/cat", "val/cat", "test/dog"], None, ["cat", "cat", "dog"]),
        (["val", "test"], None, ["", ""]),
        (["", "val/cat"], None, ["", "cat"]),
        (["test", "cat"], None, ["test", "cat"]),  # a class of that name
        (["a/train", "b/train"], None, ["a/train", "b/train"]),
        (["train/a/b/c", "val/a/b/d"], 2, ["a/b", "a/b"]),
        (["train/a/b/c", "val/a/b/d"], -1, ["c", "d"]),
        (["a", "a/b"], 2, ["a", "a/b"]),
        (["a", "a/b"], 0, ["", ""]),
        (["./a", "/a", "../a"], None, ["a", "a", "a"]),
    ],
)
def test_the_class_of_a_folder(folders: list[str], level: int | None, expected: list[str]) -> None:
    assert folder_classes(folders, level) == expected


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (("images/train/cat", "images/val/dog", "images/val/cat"), [0, 1, 0]),
        (("a/b/cat", "a/b/dog"), [0, 1]),
        (("images/train/cat", "images/val/cat"), [-1, -1]),
        (("images/cat", "images/dog", "images"), [0, 1, -1]),
    ],
)
def test_a_folder_and_a_tar_file_of_it_have_the_same_classes(
    folders: tuple[str, ...], expected: list[int], tmp_path: Path
) -> None:
    """The folders that all images are in say nothing, nor do those of a split below them."""
    names = [f"{folder}/{at}.png" for at, folder in enumerate(folders)]
    put(*(tmp_path / "data" / name for name in names))
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        archive.add(tmp_path / "data", "data")
    of_folder = classes_of(tmp_path / "data", len(names))
    assert [of_folder[name] for name in names] == expected
    of_archive = classes_of(tmp_path / "data.tar", len(names))
    assert [of_archive[f"data/{name}"] for name in names] == expected


def test_images_beside_class_folders_have_no_label(tmp_path: Path) -> None:
    put(tmp_path / "loose.png", tmp_path / "a/1.png", tmp_path / "b/2.png")
    assert classes_of(tmp_path, 3) == {"a/1.png": 0, "b/2.png": 1, "loose.png": -1}


def test_splits_that_are_not_asked_for_are_no_classes(tmp_path: Path) -> None:
    put(*(tmp_path / f"{split}/{name}/1.png" for split in ("val", "test") for name in ("a", "b")))
    actual = classes_of(tmp_path, 4)
    assert actual == {"test/a/1.png": 0, "test/b/1.png": 1, "val/a/1.png": 0, "val/b/1.png": 1}


@pytest.mark.parametrize(("single", "warned"), [(2, False), (3, True)])
def test_a_class_for_each_image_is_warned_of(tmp_path: Path, single: int, warned: bool) -> None:
    put(*(tmp_path / f"kind/single{i}/1.png" for i in range(single)))
    put(*(tmp_path / f"kind/double{i}/{k}.png" for i in range(2) for k in range(2)))
    samples = opened(tmp_path, single + 4)
    assert bool(samples.remarks) == warned
    for remark in samples.remarks:
        assert remark.startswith("warning: 3 of 5 classes have one image")
        assert "--class-level 1" in remark
    assert not opened(tmp_path, 4, class_level=2).remarks


def test_labels_that_differ_are_not_the_same_features(tmp_path: Path) -> None:
    image_folder(tmp_path, 8, ["a/x", "a/y", "b/x"])
    whole, first = opened(tmp_path, 8), opened(tmp_path, 8, class_level=1)
    assert whole.fingerprint == first.fingerprint  # the images are comparable
    hashes = {whole.labels_sha256, first.labels_sha256}
    assert len(hashes) == 2
    assert None not in hashes
    assert opened(tmp_path, 8, class_level=0).labels_sha256 is None


def test_a_file_with_other_labels_is_not_taken_for_what_is_asked(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "set", 8, ["a/x", "a/y", "b/x"])
    path = checkpoint(tmp_path / "a.pt")
    common: dict[str, Any] = {"data": str(data), "n_samples": 8, "n_views": 2, "image_size": 24}
    common |= {"device": "cpu", "output": tmp_path / "a.h5", "resume": True}
    extract_checkpoint(path, ExtractSettings(**common))
    assert extract_checkpoint(path, ExtractSettings(**common)).embedded == 0
    with pytest.raises(FeatureFileError, match="exists"):
        extract_checkpoint(path, ExtractSettings(**common, class_level=1))


@pytest.mark.parametrize(
    ("option", "value", "data"),
    [
        *(("--class-level", 1, data) for data in ("embedded", "wds/x", "torch/mnist", "hfds/x")),
        *(("--image-column", "x", data) for data in ("embedded", "wds/x", "torch/mnist", "folder")),
        *(("--label-column", "x", data) for data in ("embedded", "wds/x", "torch/mnist", "folder")),
    ],
)
def test_an_option_of_other_data_is_refused(option: str, value: object, data: str) -> None:
    with pytest.raises(SettingsError, match=f"{option} {value}: is for .*; leave it out for "):
        opened(data, 1, **{option[2:].replace("-", "_"): value})


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["3", " 5\n", "3", None], [3, 5, 3, -1]),
        (["cat", "ant", "cat ", None, ""], [1, 0, 1, -1, -1]),
        (["10", "9", "x"], [0, 1, 2]),  # one is a name, so all are
        (["-7", "4"], [-1, 4]),
        ([str(2**31), "1"], [1, 0]),
        (["9" * 5000, "1"], [1, 0]),
        ([None], [-1]),
    ],
)
def test_labels_of_texts(texts: list[str | None], expected: list[int]) -> None:
    assert text_labels(texts) == expected


# Images that are not what they seem


@pytest.mark.parametrize(("copies", "said"), [(0, False), (1, False), (2, True)])
def test_copies_are_said_from_a_hundredth_on(tmp_path: Path, copies: int, said: bool) -> None:
    image_folder(tmp_path, 101)
    for i in range(copies):
        (tmp_path / f"{200 + i}.png").symlink_to(f"{i:03}.png")
    samples = opened(tmp_path, 101 + copies)
    assert bool(samples.remarks) == said
    for remark in samples.remarks:
        assert remark.startswith(f"warning: copies: {copies} of the {len(samples)} images drawn")
        assert any(f"{i:03}.png" in remark and f"{200 + i}.png" in remark for i in range(copies))


def grey(path: Path, largest: int, count: int = 3, dtype: type = np.uint16) -> None:
    path.mkdir(exist_ok=True)
    for i in range(count):
        values: NDArray[Any] = np.linspace(0, largest - i, 64).round().astype(dtype)
        Image.fromarray(values.reshape(8, 8)).save(path / f"{dtype.__name__}{i}.png")


@pytest.mark.parametrize(
    ("largest", "dtype", "white"),
    [(4095, np.uint16, 65535), (16383, np.uint16, 65535), (63, np.uint8, 255), (3, np.uint8, 255)],
)
def test_less_than_a_quarter_of_the_range_is_said(
    tmp_path: Path, largest: int, dtype: type, white: int
) -> None:
    grey(tmp_path, largest, dtype=dtype)
    (remark,) = opened(tmp_path, 3).remarks
    assert remark == (
        f"warning: dark images: no value above {largest} in the first 3 drawn whose white is "
        f"{white}; if they are not meant to be dark, as of 12 bits in 16, scale their values to "
        f"0 .. {white}"
    )
    assert opened(tmp_path, 3, bad_samples="skip").remarks == [remark]
    grey(tmp_path / "more", white // 4 + 1, count=1, dtype=dtype)
    assert not opened(tmp_path, 4).remarks


def test_each_type_of_image_has_a_range(tmp_path: Path) -> None:
    grey(tmp_path / "a", 4095)
    grey(tmp_path / "b", 255, dtype=np.uint8)
    (remark,) = opened(tmp_path, 6).remarks
    assert "no value above 4095 in the first 3 drawn whose white is 65535" in remark


def test_what_cannot_be_decoded_has_no_range(tmp_path: Path) -> None:
    grey(tmp_path, 4095)
    (tmp_path / "bad.png").write_bytes(b"bad")
    assert "in the first 3 drawn" in opened(tmp_path, 4).remarks[0]


def pages(kind: str, count: int, first: int = 0) -> bytes:
    frames = [Image.fromarray(crop(first + i)) for i in range(count)]
    frames = [frame.quantize(16) for frame in frames] if kind == "GIF" else frames
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    return file.getvalue()


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "WEBP", "PNG"])
def test_pages_after_the_first_are_seen(kind: str) -> None:
    assert has_more_pages(pages(kind, 2))
    assert not has_more_pages(pages(kind, 1))
    assert not has_more_pages(encoded(crop(1), kind))
    assert not has_more_pages(pages(kind, 2)[:40])


def test_a_preview_in_a_photograph_is_no_page() -> None:
    assert not has_more_pages(pages("MPO", 2))
    assert not has_more_pages(crop(1))
    assert not has_more_pages(Image.fromarray(crop(1)))


def test_a_text_that_names_an_animation_is_none() -> None:
    chunk = b"tEXtacTL"
    hidden = IMAGE[:33] + struct.pack(">I", 4) + chunk + bytes(4) + IMAGE[33:]
    assert not has_more_pages(hidden)


def test_pages_are_counted_in_one_line(tmp_path: Path) -> None:
    image_folder(tmp_path, 4)
    for i in range(3):
        (tmp_path / f"{i}.tif").write_bytes(pages("TIFF", 3, first=10 + i))
    (remark,) = opened(tmp_path, 7).remarks
    assert remark.startswith("3 of the 7 images drawn have more than one page or frame; the first")


def test_remarks_are_lines_on_stderr(tmp_path: Path, lines_of: Callable[..., list[str]]) -> None:
    grey(tmp_path / "set", 4095, count=4)
    put(tmp_path / "set/.hidden.png")
    lines = lines_of(tmp_path / "set", n=4)
    assert [line for line in lines if line.startswith(f"{tmp_path / 'set'}: ")] == [
        f"{tmp_path / 'set'}: left out 1 hidden image",
        next(line for line in lines if "dark images: no value above 4095" in line),
    ]


@pytest.fixture
def lines_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """What `lidar extract` says on stderr."""

    def run(data: Path, n: int) -> list[str]:
        words = ["extract", checkpoint(tmp_path / "a.pt"), "--data", data, "-n", n, "-q", 2]
        words += ["--image-size", 24, "--device", "cpu", "-o", tmp_path / "a.h5"]
        done = lidar_here(*words, monkeypatch=monkeypatch, capfd=capfd)
        assert done.returncode == 0, done.stderr
        return done.stderr.splitlines()

    return run
