"""Every kind of image file decodes right, or is named in one clear line."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from make import PHOTO, crop, encoded, image_folder, size
from PIL import Image
from reading import Pixels, decoded, number, opened, refused

from lidar_cli.data.dataset import Samples
from lidar_cli.errors import InputError


def _save(image: Image.Image, path: Path, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


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
    actual = samples.decode(0)
    assert actual.dtype == torch.uint8
    assert actual.shape == expected.shape
    tolerance = 12 if name.endswith("cmyk.jpg") else 0
    assert np.abs(actual.numpy().astype(int) - expected).mean() <= tolerance / 4
    assert np.abs(actual.numpy().astype(int) - expected).max() <= tolerance


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


def test_sixteen_bits_of_grey_are_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    (image,) = decoded(opened(tmp_path, 1))
    actual = np.asarray(image)[..., 0].astype(int)
    assert np.abs(actual - ramp.astype(int) / 257).max() <= 0.5 + 1e-6
