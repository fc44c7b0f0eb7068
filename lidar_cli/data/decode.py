"""One image, encoded or not, to uint8 [height, width, 3].

- Upright: turned as its EXIF orientation says.
- The first frame of an animation.
- Colours as they are stored, without alpha, as torchvision's and timm's loaders do: a network was
  trained on the colour of a transparent pixel.
- 16 bits of grey are scaled, 65535 to 255, and rounded; of 16 bits a colour Pillow reads the upper
  eight. CMYK goes to RGB without a profile: (255 - C)(255 - K) / 255.
- Real-valued pixels are refused: nothing says which value is white.
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
Content = bytes | Image.Image | np.ndarray  # of one image: encoded, or decoded already

# A larger image counts as a decompression bomb, as in Pillow's warning: 256 MB decoded.
MOST_PIXELS = 89_478_485
# Formats that Pillow decodes in this process; others, such as EPS, start other programs.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
# The first bytes of formats that may have several pages.
PNG = b"\x89PNG\r\n\x1a\n"
PAGED = (PNG, b"GIF8", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"RIFF")
DEEP = 65535  # white in 16 bits of grey
ORIENTATION = 0x0112  # the EXIF tag
UPRIGHT = {
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
    """The largest value in an image as it is stored, and the largest that its type can hold.

    255 for 16 bits a colour, of which Pillow reads the upper eight. Raises Undecodable.
    """
    if isinstance(content, np.ndarray):
        return int(content.max()), 255
    return _from_image(content, _brightest)


def _brightest(image: Image.Image) -> tuple[int, int]:
    if image.mode.startswith("I"):
        return int(np.asarray(image).max()), DEEP
    values: Any = (image if image.mode in ("L", "RGB") else _rgb(image)).getextrema()
    return int(np.max(values)), 255


def has_more_pages(content: Content) -> bool:
    """Whether an encoded image has pages or frames after the first; its pixels are not decoded.

    Not the previews that cameras append to a JPEG file.
    """
    if not isinstance(content, bytes) or not content.startswith(PAGED):
        return False
    if content.startswith(PNG) and b"acTL" not in content[: content.find(b"IDAT")]:
        return False
    try:
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            return bool(getattr(image, "is_animated", False))
    except Exception:  # a damaged image is refused, or left out, when it is decoded
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
        image = image.convert("RGBA")  # Pillow warns when it must drop a palette's transparency
    if image.mode == "F":
        raise Undecodable("of real-valued pixels; expected 8 or 16 bits a channel")
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip at 255
        deep = np.asarray(image, np.int64)
        if deep.min() < 0 or deep.max() > DEEP:
            raise Undecodable("grey levels beyond 16 bits; expected 8 or 16 bits a channel")
        grey = Image.fromarray(((deep * 255 + DEEP // 2) // DEEP).astype(np.uint8))
        grey.info = image.info
        image = grey
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF says nothing about the pixels
        turned = None
    return image if turned is None else image.transpose(turned)
