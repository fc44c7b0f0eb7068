"""A tar file of images: classes of folders or .cls files, and what damage or malice does."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from make import crop, encoded
from reading import opened, refused

from lidar_cli.data.tar import MOST_OF_A_HEADER

IMAGE = encoded(crop(1))
HEADERS = tarfile.BLOCKSIZE


def tar(path: Path, files: dict[str, bytes], **options: int) -> Path:
    with tarfile.open(path, "w", **options) as file:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def classes_of(data: Path, count: int, **more: int) -> dict[str, int]:
    samples = opened(data, count, **more)
    labels = samples.labels or [-1] * count
    return dict(sorted(zip(samples.ids, labels, strict=True)))


def test_classes_are_whole_paths_below_what_all_share(tmp_path: Path) -> None:
    names = [f"./top/{c}/{i}.png" for c in ("b/in", "b/out", "c/in") for i in range(2)]
    path = tar(tmp_path / "set.tar", dict.fromkeys(names, IMAGE))
    assert list(classes_of(path, 6).values()) == [0, 0, 1, 1, 2, 2]
    assert list(classes_of(path, 6, class_level=1).values()) == [0, 0, 0, 0, 1, 1]
    assert list(classes_of(path, 6, class_level=-1).values()) == [0, 0, 1, 1, 0, 0]


def test_splits_in_a_tar_file_are_no_classes(tmp_path: Path) -> None:
    names = [f"set/{split}/{c}/1.png" for split in ("train", "val") for c in "ab"]
    path = tar(tmp_path / "set.tar", dict.fromkeys(names, IMAGE))
    assert list(classes_of(path, 4).values()) == [0, 1, 0, 1]


def test_absolute_and_odd_names_are_names_alone(tmp_path: Path) -> None:
    names = ["/abs/1.PNG", "../up/2.png", "a//b/3.png", "caf\udce9/4.png", "5.png"]
    path = tar(tmp_path / "set.tar", dict.fromkeys(names, IMAGE))
    assert classes_of(path, 5) == {
        **{"../up/2.png": 3, "/abs/1.PNG": 1, "5.png": -1, "a//b/3.png": 0},
        "caf\\xe9/4.png": 2,
    }


def test_what_a_desktop_packs_along_is_left_out(tmp_path: Path) -> None:
    files = {"a/1.png": IMAGE, "b/2.png": IMAGE, "._x.png": b"x", "a/._1.png": b"x"}
    files |= {"__MACOSX/a/1.png": IMAGE, ".git/1.png": IMAGE, "a/notes.txt": b"x"}
    samples = opened(tar(tmp_path / "set.tar", files), 2)
    assert sorted(samples.ids) == ["a/1.png", "b/2.png"]
    assert samples.remarks[0] == "left out 4 hidden images"


def test_links_in_a_tar_file_are_said(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(IMAGE)
    os.link(tmp_path / "1.png", tmp_path / "2.png")
    (tmp_path / "3.png").symlink_to("1.png")
    with tarfile.open(tmp_path / "set.tar", "w") as file:
        for i in (1, 2, 3):
            file.add(tmp_path / f"{i}.png", f"{i}.png")
    samples = opened(tmp_path / "set.tar", 1)
    assert samples.ids == ["1.png"]
    assert samples.remarks == ["left out 2 links in the tar file"]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([b"7", b"3\n", None], [7, 3, -1]),
        ([b"dog", b"cat", b"dog"], [1, 0, 1]),
        ([b"dog", b"1", None], [1, 0, -1]),
    ],
)
def test_classes_beside_the_images(
    tmp_path: Path, texts: list[bytes | None], expected: list[int]
) -> None:
    files: dict[str, bytes] = {}
    for i, text in enumerate(texts):
        files[f"x{i % 2}/{i}.a.jpg"] = IMAGE
        if text is not None:
            files[f"x{i % 2}/{i}.a.cls"] = text
    path = tar(tmp_path / "set.tar", files)
    actual = classes_of(path, 3)
    assert [actual[f"x{i % 2}/{i}.a.jpg"] for i in range(3)] == expected
    # Folders, where they are asked for.
    assert list(classes_of(path, 3, class_level=1).values()) == [0, 0, 1]


def test_a_class_that_is_no_class_is_refused(tmp_path: Path) -> None:
    path = tar(tmp_path / "set.tar", {"1.jpg": IMAGE, "1.cls": bytes(2000)})
    assert "1.cls has 2,000 bytes; expected a class" in refused(path)


def test_a_tar_file_without_images_names_what_is_there(tmp_path: Path) -> None:
    text = refused(tar(tmp_path / "set.tar", {"a.gif": b"x", "b/.c.png": b"x"}))
    assert "no images could be listed: no file ends in .bmp" in text
    assert text.endswith("(1 other file (.gif); left out 1 hidden image)")


def test_damage_after_the_first_file_is_no_end(tmp_path: Path) -> None:
    files = {f"{i}.png": IMAGE for i in range(6)}
    path = tar(tmp_path / "set.tar", files)
    content = bytearray(path.read_bytes())
    size = HEADERS + -(-len(IMAGE) // HEADERS) * HEADERS
    content[3 * size + 150] ^= 0x55  # in the checksum of the fourth header
    path.write_bytes(content)
    assert refused(path).endswith(f"no images could be listed: damaged at byte {3 * size:,}")
    (tmp_path / "shards").mkdir()
    path.rename(tmp_path / "shards/s-0.tar")
    text = refused(f"wds/{tmp_path}/shards", 6)
    assert text.endswith(f"s-0.tar cannot be read: damaged at byte {3 * size:,}")


def header(name: str, size: int, kind: bytes) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def extended(records: bytes) -> bytes:
    return header("x", len(records), tarfile.XHDTYPE) + records + bytes(-len(records) % HEADERS)


GOOD = header("1.png", len(IMAGE), tarfile.REGTYPE) + IMAGE + bytes(-len(IMAGE) % HEADERS)
SPARSE = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n24 GNU.sparse.name=1.png\n"
HARMFUL = {
    # tarfile looks for a word after digits in a time that grows with their square
    "digits": extended(b"1" * 100_000) + GOOD,
    "negative size": extended(b"14 size=-1024\n") + GOOD,
    "one behind another": b"".join(extended(b"11 path=x\n") for _ in range(3000)) + GOOD,
    "long name": header("x", 2**40, tarfile.GNUTYPE_LONGNAME) + bytes(2**18),
    "a map without an end": extended(SPARSE)
    + header("1.png", 9, tarfile.REGTYPE)
    + b"500\n"
    + b"1\n" * 254,
    "tar in tar in tar": b"",
}


@pytest.mark.parametrize("name", HARMFUL)
def test_headers_made_to_do_harm_are_refused_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / "set.tar").write_bytes(HARMFUL[name] if HARMFUL[name] else nested(20))
    assert refused(tmp_path / "set.tar").startswith(
        f"--data {tmp_path / 'set.tar'}: no images could be listed: "
    )


def test_a_sparse_long_name_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "set.tar"
    with path.open("wb") as file:
        file.write(GOOD + header("x", 2**39, tarfile.GNUTYPE_LONGNAME))
        file.truncate(2**39)
    assert f"a header of more than {MOST_OF_A_HEADER:,} bytes" in refused(path)


def nested(depth: int) -> bytes:
    content = GOOD
    for _ in range(depth):
        content = header("a.tar", len(content), tarfile.REGTYPE) + content
        content += bytes(-len(content) % HEADERS)
    return content


def test_a_pipe_is_no_tar_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "set.tar")
    assert "expected a folder of images" in refused(tmp_path / "set.tar")
    assert "cannot be read: a pipe, not a file" in refused(f"wds/{tmp_path}")
