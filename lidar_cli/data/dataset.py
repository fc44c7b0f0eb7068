"""Draws the samples of a run: the first N usable images of a data source in the order of a seed.

Every image is read once before anything is computed. With `--bad-samples skip` it is also decoded,
and a bad one is replaced by the next image in the order of the seed. So n does not change, and the
list of samples depends on data, seed and n alone: it is the same for a resumed run and for every
checkpoint of a ranking. If the data change, so does the fingerprint, and features stored for the
old list are not used for the new one.

A decoded image is uint8 [height, width, channels], three unless `--bands` selects others:
- It is turned upright by its EXIF orientation.
- Of an animation the first frame is taken.
- Alpha is dropped and the stored colour is used, as in torchvision's and timm's loaders: networks
  are trained on the colour of transparent pixels.
- 16-bit grey is scaled, 65535 to 255, and rounded; of 16 bits a colour Pillow reads the upper
  eight. CMYK is converted to RGB without a profile: (255 - C)(255 - K) / 255.
- Real-valued pixels are refused: no value is defined to be white.
- Bands are those of all pages of a TIFF file in order, or those of one page: red is 1, alpha is 4.
- A model of one channel gets the grey level of ITU-R BT.601, of a grey image its own level.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from lidar_cli.errors import InputError, SettingsError, first_line
from lidar_cli.runtime.files import open_regular

if TYPE_CHECKING:
    from torch import Tensor

SKIP = "leave out what is bad with --bad-samples skip"
NAMED = 3  # bad images that a message names; the feature file lists all
READERS = 8  # threads
DECODED_AT_FIRST = 32  # images of the draw that are decoded to find their largest value
DARK = 4  # images without a value above 1 / DARK of their range are most likely not scaled to it


@dataclass(frozen=True)
class Candidate:
    """An image that may become a sample.

    label: class number, -1 if unknown. read: returns the content; several threads may call it.
    """

    id: str
    label: int
    read: Callable[[], Content]


@dataclass(frozen=True)
class Source:
    """All images of the data in the order of a seed, listed lazily.

    total: their number, None for a stream. image_size: the side of all images if the data
    guarantee it, else None. remarks: lines that the user should read.
    """

    data: str
    candidates: Iterable[Candidate]
    total: int | None
    image_size: int | None = None
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class BadImage:
    """An image that was left out, with the reason."""

    id: str
    reason: str


@dataclass(frozen=True)
class Samples:
    """N images in the order of a seed.

    labels: class numbers [N], -1 if unknown, or None; for probes only.
    image_size: the side of all images if the data guarantee it, else None.
    fingerprint: SHA-256 of the ordered ids and contents; it does not depend on the folder.
    checksums: CRC-32 of each content [N], or empty; a file that changes later is refused.
    bad: images that were drawn and left out.
    remarks: lines about the data that the user should read.
    total: the number of images in the data; None for a stream.
    bands: numbers, from 1, of the bands of each image that become its channels; () for colours.
    """

    data: str
    ids: Sequence[str]
    labels: Sequence[int] | None
    read: Callable[[int], Content]
    image_size: int | None = None
    fingerprint: str = ""
    checksums: Sequence[int] = ()
    bad: Sequence[BadImage] = ()
    remarks: Sequence[str] = ()
    total: int | None = None
    bands: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def labels_sha256(self) -> str | None:
        """SHA-256 of the ordered labels, None if there are none."""
        if self.labels is None:
            return None
        return hashlib.sha256(np.asarray(self.labels, "<i8").tobytes()).hexdigest()

    def first_fingerprint(self, count: int) -> str:
        """The fingerprint of the first `count` samples."""
        return _fingerprint(self.ids[:count], self.checksums[:count])

    def decode(self, i: int, channels: int = 3) -> Tensor:
        """Sample i as uint8 [height, width, channels]; several threads may call this.

        channels: the number of `bands`; without bands 3, or 1 for grey levels.

        Raises InputError, which names the image, if it cannot be read or decoded, or has changed.
        """
        import torch

        try:
            content = self.read(i)
            if isinstance(content, bytes) and self.checksums:
                self._check(i, content)
            pixels = decoded(content, self.bands)
            grey = channels == 1 and pixels.shape[2] == 3
            return torch.from_numpy(grey_level(pixels) if grey else pixels)
        except InputError:
            raise
        except TooFewBands as error:
            raise InputError(
                f"{self.ids[i]} (in {self.data}): {error}", code="too-few-bands"
            ) from error
        except Exception as error:  # readers and decoders raise almost anything
            if isinstance(error, OSError) and error.strerror:  # the system's, not a decoder's
                fault = f"cannot be read: {error.strerror}"
            else:
                reason = str(error) if isinstance(error, Undecodable) else first_line(error)
                fault = f"cannot be decoded as an image: {reason}"
            raise InputError(
                f"{self.ids[i]} (in {self.data}): {fault}; repair or remove it, or {SKIP}",
                code="bad-image",
            ) from error

    def with_cache(self, memory: int) -> Samples:
        """The same samples, which keep decoded images in up to `memory` bytes."""
        images: dict[int, np.ndarray] = {}
        free = memory

        def read(i: int) -> np.ndarray:
            nonlocal free
            if i in images:
                return images[i]
            image = self.decode(i, len(self.bands) or 3).numpy()
            if image.nbytes <= free:
                free -= image.nbytes
                images[i] = image
            return image

        return replace(self, read=read, bands=())

    def _check(self, i: int, content: bytes) -> None:
        """Raise InputError if the content differs from that of the fingerprint."""
        if zlib.crc32(content) != self.checksums[i]:
            raise InputError(
                f"{self.ids[i]} (in {self.data}): changed since this run began; run again",
                code="changed",
            )


@dataclass(frozen=True)
class Examined:
    """The facts that reading an image gives.

    brightest: its largest value and the largest of its type; None if it was not decoded.
    """

    checksum: int
    length: int
    has_more_pages: bool
    brightest: tuple[int, int] | None


def draw(
    source: Source,
    count: int,
    skip: bool,
    fewest: int | None = None,
    bands: tuple[int, ...] = (),
) -> Samples:
    """The first `count` images; with `skip` the first `count` that can be read and decoded.

    bands: as of `Samples`.
    fewest: all images are taken where they are fewer than `count`, but not than this number.
    Raises InputError if there are too few, or, without `skip`, if one cannot be read.
    """
    fewest = count if fewest is None else min(fewest, count)
    if source.total is not None and fewest > source.total:
        raise _too_few(source, source.total, count)
    drawn: list[Candidate] = []
    examined: list[Examined] = []
    bad: list[BadImage] = []

    def examine(candidate: Candidate, number: int) -> Examined | BadImage:
        return _examine(candidate, source.data, skip, number < DECODED_AT_FIRST, bands)

    candidates, numbers = iter(source.candidates), itertools.count()
    with ThreadPoolExecutor(READERS) as pool:
        while window := list(itertools.islice(candidates, count - len(drawn))):
            for candidate, outcome in zip(window, pool.map(examine, window, numbers), strict=True):
                if isinstance(outcome, BadImage):
                    bad.append(outcome)
                else:
                    drawn.append(candidate)
                    examined.append(outcome)
    if len(drawn) < fewest:
        raise _too_few(source, len(drawn), count, bad)
    fewer = [f"{len(drawn)} images are all that it holds, so n is not {count}"]
    labels = [candidate.label for candidate in drawn]
    ids = [candidate.id for candidate in drawn]
    checksums = [one.checksum for one in examined]
    return Samples(
        data=source.data,
        ids=ids,
        labels=labels if any(label >= 0 for label in labels) else None,
        read=lambda i: drawn[i].read(),
        image_size=source.image_size,
        fingerprint=_fingerprint(ids, checksums),
        checksums=checksums,
        bad=bad,
        remarks=[
            *source.remarks,
            *(fewer if len(drawn) < count else []),
            *_content_remarks(examined, bool(bands)),
            *_copy_remarks(drawn, examined),
        ],
        total=source.total,
        bands=bands,
    )


def _examine(
    candidate: Candidate, data: str, skip: bool, find_brightest: bool, bands: tuple[int, ...]
) -> Examined | BadImage:
    """Read an image; with `skip` also decode it, and return a BadImage if that fails.

    find_brightest: also find its largest value, for which it is decoded.

    Raises InputError, without `skip`, if it cannot be read.
    """
    values = None
    try:
        content = candidate.read()
        if skip:
            decoded(content, bands)
        if find_brightest:
            with suppress(Undecodable):  # `Samples.decode` refuses it
                values = brightest(content)
    except Undecodable as error:
        return BadImage(candidate.id, str(error))
    except Exception as error:  # readers and decoders raise almost anything
        ours = isinstance(error, InputError)
        if skip:
            reason = str(error).removeprefix(f"--data {data}: ") if ours else first_line(error)
            return BadImage(candidate.id, reason)
        if ours:
            raise
        raise InputError(
            f"{candidate.id} (in {data}): cannot be read: {first_line(error)}; {SKIP}",
            code="bad-image",
        ) from error
    stored = _bytes(content)
    return Examined(zlib.crc32(stored), len(stored), has_more_pages(content), values)


def _bytes(content: Content) -> bytes:
    if isinstance(content, Image.Image):
        return content.tobytes() + f"{content.mode} {content.size}".encode()
    return content if isinstance(content, bytes) else content.tobytes()


def _fingerprint(ids: Sequence[str], checksums: Sequence[int]) -> str:
    digest = hashlib.sha256()
    for name, checksum in zip(ids, checksums, strict=True):
        digest.update(f"{name}\0{checksum}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _copy_remarks(drawn: Sequence[Candidate], examined: Sequence[Examined]) -> Iterator[str]:
    """A warning if at least 1 % of the images have the content of another.

    Images of equal checksum and length count as copies if the first such pair has equal bytes.
    """
    first_with: dict[tuple[int, int], int] = {}
    pairs = [
        (first_with[key], i)
        for i, one in enumerate(examined)
        if first_with.setdefault(key := (one.checksum, one.length), i) != i
    ]
    if 100 * len(pairs) < len(examined) or not pairs:
        return
    one, other = (drawn[i] for i in pairs[0])
    with suppress(Exception):  # `Samples.decode` refuses a file that vanished
        if _bytes(one.read()) != _bytes(other.read()):
            return
        yield (
            f"warning: copies: {len(pairs):,} of the {len(examined):,} images drawn have the "
            f"content of another, such as {one.id} and {other.id}; samples should differ"
        )


def _content_remarks(examined: Sequence[Examined], pages_are_bands: bool) -> Iterator[str]:
    """A line about images of several pages, and a warning about images that are all dark."""
    pages = sum(one.has_more_pages for one in examined)
    if pages and not pages_are_bands:
        yield (
            f"{pages:,} of the {len(examined):,} images drawn have more than one page or frame; "
            "the first alone is read: save the pages as files to use them all"
        )
    values: dict[int, list[int]] = {}
    for one in examined:
        if one.brightest is not None:
            values.setdefault(one.brightest[1], []).append(one.brightest[0])
    for white, brightest_values in sorted(values.items()):
        largest = max(brightest_values)
        if largest * DARK < white:
            yield (
                f"warning: dark images: no value above {largest} in the first "
                f"{len(brightest_values)} drawn whose white is {white}; if they are not meant to "
                f"be dark, as of 12 bits in 16, scale their values to 0 .. {white}"
            )


def describe_bad(bad: Sequence[BadImage]) -> str:
    """The number of bad images and the first of them, in words."""
    first = "; ".join(f"{one.id}: {one.reason}" for one in bad[:NAMED])
    more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    return f"{len(bad)} bad {'image' if len(bad) == 1 else 'images'}: {first}{more}"


def _too_few(source: Source, usable: int, count: int, bad: Sequence[BadImage] = ()) -> InputError:
    without = f" ({describe_bad(bad)})" if bad else ""
    kind = "usable images" if bad else "images"
    return InputError(
        f"--data {source.data}: holds {usable} {kind}, {count} were asked for{without}; lower -n",
        code="too-few-images",
    )


def shuffled(total: int, seed: int) -> list[int]:
    """The indices below `total` in the order of the seed."""
    # The stream of RandomState is frozen, unlike that of numpy's newer generators.
    order: list[int] = np.random.RandomState(seed % 2**32).permutation(total).tolist()
    return order


def as_text(name: str) -> str:
    """The name with NUL and bytes that are not UTF-8 escaped, so that it can be stored."""
    return os.fsencode(name).decode("utf-8", "backslashreplace").replace("\0", "\\x00")


def read_file(path: Path) -> bytes:
    """The content of a regular file."""
    with open_regular(path) as file:
        return file.read()


T = TypeVar("T")
Content = bytes | Image.Image | np.ndarray  # one image, encoded or decoded

# A larger image counts as a decompression bomb. The limit is Pillow's; 256 MB decoded.
MOST_PIXELS = 89_478_485
MOST_BANDS = 1024
# Formats that Pillow decodes in this process; for others, such as EPS, it starts programs.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
# The first bytes of formats that may have several pages.
PNG = b"\x89PNG\r\n\x1a\n"
PAGED = (PNG, b"GIF8", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"RIFF")
WHITE_16_BIT = 65535
ORIENTATION = 0x0112  # the EXIF tag
TRANSPOSES = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Undecodable(Exception):
    """An image that cannot be decoded, with the reason in words."""


class TooFewBands(Undecodable):
    """A good image without a band that `--bands` names."""


def decoded(content: Content, bands: Sequence[int] = ()) -> np.ndarray:
    """The pixels [height, width, 3], or those of the bands, in their order. Raises Undecodable."""
    if isinstance(content, np.ndarray):
        return _select(content, bands) if bands else content
    if not bands:
        return _from_image(content, lambda image: np.array(_upright(_rgb(image))))
    try:
        return _from_image(content, lambda image: _select(_all_bands(image), bands))
    except Undecodable as error:
        if not isinstance(error.__cause__, UnidentifiedImageError):
            raise
        raise Undecodable(
            f"{error}, or of more than 4 bands a page, which are not read; save each band as a "
            "page of one TIFF file"
        ) from error


def _select(pixels: np.ndarray, bands: Sequence[int]) -> np.ndarray:
    count = pixels.shape[2]
    if max(bands) > count:
        held, nameable = (
            ("1 band", "it") if count == 1 else (f"{count} bands", f"bands up to {count}")
        )
        raise TooFewBands(f"has {held}, and --bands names {max(bands)}; name {nameable}")
    return np.ascontiguousarray(pixels[:, :, [band - 1 for band in bands]])


def _all_bands(image: Image.Image) -> np.ndarray:
    """The pixels [height, width, bands] of all pages of a TIFF file, or of the first frame."""
    frames = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
    if image.width * image.height * frames > 3 * MOST_PIXELS:
        raise Image.DecompressionBombError
    pages = []
    for frame in range(frames):
        image.seek(frame)
        pixels = np.array(_upright(_eight_bit(image)))
        pages.append(pixels[..., None] if pixels.ndim == 2 else pixels)
    if len({page.shape[:2] for page in pages}) > 1:
        raise Undecodable("of pages of several sizes, which are no bands of one image")
    return np.concatenate(pages, axis=2)


def grey_level(pixels: np.ndarray) -> np.ndarray:
    """The luma [height, width, 1] of pixels [height, width, 3], rounded as by Pillow."""
    red, green, blue = np.moveaxis(pixels.astype(np.uint32), 2, 0)
    luma: np.ndarray = (red * 19595 + green * 38470 + blue * 7471 + 2**15) >> 16
    return luma[..., None].astype(np.uint8)


def brightest(content: Content) -> tuple[int, int]:
    """The largest value in an image as stored, and the largest that its type can hold.

    The latter is 255 for 16 bits a colour, of which Pillow reads the upper eight.
    Raises Undecodable.
    """
    if isinstance(content, np.ndarray):
        return int(content.max()), 255
    return _from_image(content, _brightest)


def _brightest(image: Image.Image) -> tuple[int, int]:
    if image.mode.startswith("I"):
        return int(np.asarray(image).max()), WHITE_16_BIT
    values: Any = (image if image.mode in ("L", "RGB") else _rgb(image)).getextrema()
    return int(np.max(values)), 255


def has_more_pages(content: Content) -> bool:
    """Whether an encoded image has pages or frames after the first; no pixels are decoded.

    The previews that cameras append to a JPEG file do not count.
    """
    if not isinstance(content, bytes) or not content.startswith(PAGED):
        return False
    if content.startswith(PNG) and b"acTL" not in content[: content.find(b"IDAT")]:
        return False
    try:
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            return bool(getattr(image, "is_animated", False))
    except Exception:  # `decoded` reports a damaged image
        return False


def _from_image(content: bytes | Image.Image, take: Callable[[Image.Image], T]) -> T:
    """The result of `take` on a loaded image. Raises Undecodable."""
    try:
        if isinstance(content, bytes):
            content = Image.open(io.BytesIO(content), formats=_formats())
        width, height = content.size
        if width * height > MOST_PIXELS:
            raise Image.DecompressionBombError
        content.load()
        return take(content)
    except Undecodable:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Undecodable(f"of more than {MOST_PIXELS:,} pixels, the most that is taken") from error
    except UnidentifiedImageError as error:
        raise Undecodable("of no known image format") from error
    except Exception as error:  # damaged bytes make decoders raise almost anything
        raise Undecodable(first_line(error)) from error


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _rgb(image: Image.Image) -> Image.Image:
    return _eight_bit(image).convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    """The image with 8 bits a channel, without a palette."""
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns if it drops the transparency of a palette
    if image.mode == "F":
        raise Undecodable("of real-valued pixels; expected 8 or 16 bits a channel")
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip at 255
        levels = np.asarray(image, np.int64)
        if levels.min() < 0 or levels.max() > WHITE_16_BIT:
            raise Undecodable("grey levels beyond 16 bits; expected 8 or 16 bits a channel")
        grey = Image.fromarray(
            ((levels * 255 + WHITE_16_BIT // 2) // WHITE_16_BIT).astype(np.uint8)
        )
        grey.info = image.info
        image = grey
    if image.mode in ("1", "P", "PA"):
        return image.convert({"1": "L", "P": "RGB"}.get(image.mode, "RGBA"))
    return image


def parse_bands(text: str | None) -> tuple[int, ...]:
    """The numbers of `--bands`, () without it. Raises SettingsError."""
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    bands = tuple(int(part) for part in parts if part.isascii() and part.isdigit())
    if len(bands) < len(parts) or not all(1 <= band <= MOST_BANDS for band in bands):
        raise SettingsError(
            f"--bands {text}: expected numbers of bands from 1 on, with commas, such as 3,2,1",
            code="wrong-bands",
        )
    return bands


def _upright(image: Image.Image) -> Image.Image:
    try:
        transpose = TRANSPOSES.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # the pixels are good even if the EXIF data are damaged
        transpose = None
    return image if transpose is None else image.transpose(transpose)
