"""Every odd kind of image, made by hand, reads as the array that is written beside it."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lidar_cli.data.dataset import MOST_PIXELS, Undecodable, decoded

A, B, C = (250, 10, 20), (30, 240, 40), (50, 60, 230)
D, E, F = (200, 190, 10), (15, 180, 170), (160, 20, 150)
UPRIGHT = [[A, B, C], [D, E, F]]
# What a camera stores: EXIF names the sides of the scene on which row 0 and column 0 lie.
STORED = {
    1: [[A, B, C], [D, E, F]],  # top, left
    2: [[C, B, A], [F, E, D]],  # top, right
    3: [[F, E, D], [C, B, A]],  # bottom, right
    4: [[D, E, F], [A, B, C]],  # bottom, left
    5: [[A, D], [B, E], [C, F]],  # left, top
    6: [[C, F], [B, E], [A, D]],  # right, top
    7: [[F, C], [E, B], [D, A]],  # right, bottom
    8: [[D, A], [E, B], [F, C]],  # left, bottom
}


def exif(orientation: int) -> bytes:
    """A TIFF header and one directory with the tag 0x0112, a short."""
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    return b"II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)


def png(
    width: int, height: int, depth: int, kind: int, rows: bytes, *more: tuple[bytes, bytes]
) -> bytes:
    """A PNG file of filtered rows; kind: 0 grey, 2 colour, 3 palette, 4 grey and 6 with alpha."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def row(*values: int, deep: bool = False) -> bytes:
    """One row of a PNG without a filter, 8 or 16 bits a value."""
    return b"\0" + (struct.pack(f">{len(values)}H", *values) if deep else bytes(values))


def tiff(width: int, height: int, data: bytes, **more: int) -> bytes:
    """A little-endian TIFF file of one strip."""
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 0, 277: 1, 278: height}
    tags |= {279: len(data)} | {int(name[1:]): value for name, value in more.items()}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(rows: Any) -> NDArray[np.uint8]:
    return np.array(rows, np.uint8)


def grey(rows: Any) -> NDArray[np.uint8]:
    return np.repeat(pixels(rows)[:, :, None], 3, axis=2)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", STORED)
def test_all_orientations_come_out_upright(orientation: int, kind: str) -> None:
    stored, expected = pixels(STORED[orientation]), pixels(UPRIGHT)
    if kind == "JPEG":  # whole blocks, so that it loses next to nothing
        stored, expected = (one.repeat(16, 0).repeat(16, 1) for one in (stored, expected))
    saved_exif: dict[str, Any] = {"exif": b"Exif\0\0" + exif(orientation)}
    saved_exif = {"tiffinfo": {0x0112: orientation}} if kind == "TIFF" else saved_exif
    lossless = {
        "WEBP": {"lossless": True, "exact": True},
        "JPEG": {"quality": 100, "subsampling": 0},
    }
    content = saved(Image.fromarray(stored), kind, **saved_exif, **lossless.get(kind, {}))
    actual = decoded(content)
    assert actual.shape == expected.shape
    assert np.abs(actual.astype(int) - expected).max() <= (3 if kind == "JPEG" else 0)


@pytest.mark.parametrize(
    "saved_exif", [exif(0), exif(9), exif(65535), b"II*\0\xff\xff\xff\xff", b"words"]
)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_an_orientation_that_is_none_turns_nothing(saved_exif: bytes) -> None:
    content = png(2, 1, 8, 2, row(*A, *B), (b"eXIf", saved_exif))
    assert np.array_equal(decoded(content), pixels([[A, B]]))


def test_sixteen_bits_turned_and_scaled_at_once() -> None:
    content = png(2, 1, 16, 0, row(257 * 7, 257 * 9, deep=True), (b"eXIf", exif(6)))
    assert np.array_equal(decoded(content), grey([[7], [9]]))


# value / 257, rounded: 128 is 0.498, 129 is 0.502
DEEP = [0, 128, 129, 257, 257 * 100, 257 * 100 + 128, 257 * 100 + 129, 32768, 65535]
SCALED = grey([[0, 0, 1, 1, 100, 100, 101, 128, 255]])


@pytest.mark.parametrize(
    "content",
    [
        png(9, 1, 16, 0, row(*DEEP, deep=True)),
        b"P5 9 1 65535\n" + struct.pack(">9H", *DEEP),
        tiff(9, 1, struct.pack("<9H", *DEEP), t258=16),
        tiff(9, 1, struct.pack("<9I", *DEEP), t258=32),
        saved(Image.fromarray(np.array([DEEP], np.uint16)), "TIFF", compression="tiff_lzw"),
    ],
    ids=["png", "pgm", "tiff", "tiff of 32 bits", "tiff, compressed"],
)
def test_sixteen_bits_of_grey_are_scaled_and_rounded(content: bytes) -> None:
    assert np.array_equal(decoded(content), SCALED)


@pytest.mark.parametrize(
    "content",
    [
        png(3, 1, 16, 2, row(*DEEP, deep=True)),
        png(3, 1, 16, 6, row(*DEEP[:3], 5, *DEEP[3:6], 65535, *DEEP[6:], 0, deep=True)),
        saved(Image.frombytes("RGB", (3, 1), bytes(v >> 8 for v in DEEP)), "PNG"),
    ],
    ids=["png", "png with alpha", "what it must equal"],
)
def test_sixteen_bits_a_colour_keep_the_upper_eight(content: bytes) -> None:
    expected = pixels([[[0, 0, 0], [1, 100, 100], [100, 128, 255]]])
    assert np.array_equal(decoded(content), expected)
    assert np.abs(expected.reshape(-1) - np.array(DEEP) / 257).max() < 1


def test_a_tiff_of_sixteen_bits_a_colour() -> None:
    short = struct.pack("<HHI", 258, 3, 3)  # three bit depths, beside the directory
    content = bytearray(tiff(3, 1, struct.pack("<9H", *DEEP), t258=0, t262=2, t277=3))
    at = content.index(struct.pack("<HHI", 258, 4, 1))
    content[at : at + 12] = short + struct.pack("<I", len(content))
    content += struct.pack("<3H", 16, 16, 16)
    expected = pixels([[[0, 0, 0], [1, 100, 100], [100, 128, 255]]])
    assert np.array_equal(decoded(bytes(content)), expected)


INKS = {  # (255 - C)(255 - K) / 255, and so for M and Y
    (0, 0, 0, 0): (255, 255, 255),
    (255, 0, 0, 0): (0, 255, 255),
    (0, 255, 0, 0): (255, 0, 255),
    (0, 0, 255, 0): (255, 255, 0),
    (0, 0, 0, 255): (0, 0, 0),
    (51, 102, 153, 0): (204, 153, 102),
    (0, 0, 0, 51): (204, 204, 204),
    (51, 0, 255, 51): (163, 204, 0),
}


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_cmyk_is_ink_on_paper(kind: str) -> None:
    inks, expected = pixels([list(INKS)]), pixels([list(INKS.values())])
    if kind == "JPEG":
        inks, expected = (one.repeat(16, 0).repeat(16, 1) for one in (inks, expected))
    image = Image.frombytes("CMYK", inks.shape[1::-1], inks.tobytes())
    content = saved(image, kind, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))
    assert np.abs(decoded(content).astype(int) - expected).max() <= (4 if kind == "JPEG" else 1)


PALETTE = (b"PLTE", bytes([*A, *B, *C, *D]))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (png(3, 1, 8, 6, row(*A, 0, *B, 128, *C, 255)), [[A, B, C]]),
        (png(3, 1, 8, 4, row(7, 0, 8, 128, 9, 255)), [[(7,) * 3, (8,) * 3, (9,) * 3]]),
        (png(4, 1, 8, 3, row(3, 2, 1, 0), PALETTE), [[D, C, B, A]]),
        (png(4, 1, 2, 3, row(0b11100100), PALETTE), [[D, C, B, A]]),
        (png(4, 1, 8, 3, row(3, 2, 1, 0), PALETTE, (b"tRNS", b"\0\x80\xff\0")), [[D, C, B, A]]),
        (png(2, 1, 8, 2, row(*A, *B), (b"tRNS", struct.pack(">HHH", *A))), [[A, B]]),
        (png(2, 1, 8, 0, row(7, 9), (b"tRNS", b"\0\7")), [[(7,) * 3, (9,) * 3]]),
        (png(3, 1, 1, 0, row(0b01000000)), [[(0,) * 3, (255,) * 3, (0,) * 3]]),
        (b"P4 3 1\n" + bytes([0b01000000]), [[(255,) * 3, (0,) * 3, (255,) * 3]]),
        (tiff(3, 1, bytes([0b01000000]), t258=1), [[(0,) * 3, (255,) * 3, (0,) * 3]]),
        (tiff(3, 1, bytes([0b01000000]), t258=1, t262=0), [[(255,) * 3, (0,) * 3, (255,) * 3]]),
        (png(1, 1, 8, 2, row(*A)), [[A]]),
        (png(1, 1, 1, 0, row(0x80)), [[(255,) * 3]]),
    ],
    ids=[
        "alpha", "grey with alpha", "palette", "palette of 2 bits", "palette, transparent",
        "one colour transparent", "one grey transparent", "1 bit", "1 bit, black is 1",
        "1 bit tiff", "1 bit tiff, white is 0", "one pixel", "one bit alone",
    ],
)  # fmt: skip
def test_colours_are_those_stored_and_alpha_is_left_out(content: bytes, expected: Any) -> None:
    assert np.array_equal(decoded(content), pixels(expected))


@pytest.mark.parametrize(("width", "height"), [(30_000, 2), (2, 30_000), (30_000, 1)])
def test_long_images(width: int, height: int) -> None:
    values = np.arange(width * height, dtype=np.uint32).reshape(height, width)
    expected = np.stack([values & 255, values >> 8 & 255, values % 251], axis=2).astype(np.uint8)
    rows = b"".join(b"\0" + one.tobytes() for one in expected)
    assert np.array_equal(decoded(png(width, height, 8, 2, rows)), expected)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_is_its_first_frame(kind: str) -> None:
    first, second = pixels([[A, B], [B, A]]), pixels([[C, C], [C, C]])
    frames = [Image.fromarray(one) for one in (first, second)]
    options: dict[str, Any] = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    if kind == "GIF":
        frames = [frame.quantize(4) for frame in frames]
    content = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(content)) as opened:
        assert opened.n_frames == 2  # type: ignore[attr-defined]
    assert np.array_equal(decoded(content), first)


def refusal(content: bytes) -> str:
    with pytest.raises(Undecodable) as caught:
        decoded(content)
    assert "\n" not in str(caught.value)
    assert "0x" not in str(caught.value)
    return str(caught.value)


REAL = saved(Image.fromarray(np.array([[0.5, 1.0]], np.float32)), "TIFF")
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
WIDE = 9460  # 9460^2 is the first square beyond the most that is taken
ROWS = bytes((1 + (WIDE + 7) // 8) * WIDE)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "of no known image format"),
        (b"words, not pixels", "of no known image format"),
        (png(9, 9, 8, 2, row(*A)), "truncated"),
        (png(3, 1, 8, 2, row(*A, *B, *C))[:48], ""),
        (tiff(2, 1, struct.pack("<2i", 0, 65536), t258=32), "beyond 16 bits"),
        (tiff(2, 1, struct.pack("<2i", -1, 7), t258=32, t339=2), "beyond 16 bits"),
        (REAL, "of real-valued pixels"),
        (png(WIDE, WIDE, 1, 0, ROWS), "of more than 89,478,485 pixels"),
        (png(60_000, 60_000, 8, 2, row(*A)), "of more than 89,478,485 pixels"),
        (png(2**31 - 1, 2**31 - 1, 16, 6, row(*A)), "of more than 89,478,485 pixels"),
        (png(0, 5, 8, 2, b""), ""),
        (EPS, "of no known image format"),
    ],
    ids=[
        "empty", "words", "rows missing", "cut", "32 bits", "negative", "real", "bomb", "lie",
        "great lie", "no pixel", "a program for another program",
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused_with_the_reason(content: bytes, reason: str) -> None:
    assert reason in refusal(content)


def test_the_files_of_that_test_are_what_it_says() -> None:
    assert (WIDE - 1) ** 2 < MOST_PIXELS < WIDE**2
    assert Image.open(io.BytesIO(REAL)).mode == "F"
    assert Image.open(io.BytesIO(EPS)).format == "EPS"  # loading it would start Ghostscript
    assert decoded(png(8, 9, 1, 0, bytes(2 * 9))).shape == (9, 8, 3)


def test_a_bomb_in_the_text_of_an_image_is_refused() -> None:
    bomb = b"note\0\0" + zlib.compress(bytes(2**27), 9)  # 128 MB in 128 kB
    content = png(1, 1, 8, 2, row(*A), (b"zTXt", bomb))
    assert len(content) < 2**18
    assert "too large" in refusal(content).lower()
