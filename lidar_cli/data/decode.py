"""Decodes one image to uint8 [height, width, 3].

- It is turned upright by its EXIF orientation.
- Of an animation the first frame is taken.
- Alpha is dropped and the stored colour is used, as in torchvision's and timm's loaders: networks
  are trained on the colour of transparent pixels.
- 16-bit grey is scaled, 65535 to 255, and rounded; of 16 bits a colour Pillow reads the upper
  eight. CMYK is converted to RGB without a profile: (255 - C)(255 - K) / 255.
- Real-valued pixels are refused: no value is defined to be white.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from lidar_cli.errors import first_line

T = TypeVar("T")
Content = bytes | Image.Image | np.ndarray  # one image, encoded or decoded

# A larger image counts as a decompression bomb. The limit is Pillow's; 256 MB decoded.
MOST_PIXELS = 89_478_485
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


def decoded(content: Content) -> np.ndarray:
    """The pixels [height, width, 3]. Raises Undecodable."""
    if isinstance(content, np.ndarray):
        return content
    return _from_image(content, lambda image: np.array(_upright(_rgb(image))))


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
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    try:
        transpose = TRANSPOSES.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # the pixels are good even if the EXIF data are damaged
        transpose = None
    return image if transpose is None else image.transpose(transpose)
