"""A labelled image set made from real pictures that ship inside scikit-learn.

Every image is one handwritten digit composited over a crop of a photograph; position, size and
colours are drawn by seed. With this set every command runs without --data, and `lidar demo`
compares scores with the accuracy of linear probes. Nothing is downloaded.

Images are computed by integer arithmetic from the raw output of a bit generator whose stream NumPy
does not change, so a seed gives the same bytes on every machine that decodes the two JPEG files to
the same pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIDE = 32  # of an image, pixels; small, so that twelve networks train in a minute on two cores
DIGIT_SIDES = (26, 32)  # least and greatest side of a digit's box, pixels
DIMMING = 2  # the photographs are darkened by this factor, so that the ink has contrast
CONTRAST = 100  # of 255: least difference of ink and mean background, in each channel
INK_LEVELS = 16  # `load_digits` counts 0..16 dark pixels per cell
SHRINKS = (1, 2, 4)  # the photographs are used at full, half and quarter size
TEST_EVERY = 5  # one in five digits of each class is a test digit

ATTRIBUTION = (
    "Photographs: china.jpg, some rights reserved by danielbuechele "
    "(https://www.flickr.com/photos/danielbuechele/6061409035), and flower.jpg, some rights "
    "reserved by danielbuechele as scikit-learn states it, found at "
    "https://www.flickr.com/photos/vultilion/6056698931; both CC BY 2.0 "
    "(https://creativecommons.org/licenses/by/2.0/), cropped, shrunk, darkened and drawn over. "
    "Digits: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine "
    "Learning Repository, recoloured and resized. Both as shipped with scikit-learn."
)

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class EmbeddedImages:
    """N labelled images, the digits in the order of `sklearn.datasets.load_digits`."""

    images: NDArray[np.uint8]  # [N, S, S, 3], RGB
    labels: Integers  # [N], the digit 0..9
    train: NDArray[np.bool_]  # [N]; the split is by digit and the same for every seed
    attribution: str  # to be shown with any picture of the images


def embedded_images(seed: int = 0) -> EmbeddedImages:
    """The image set of one seed: N = 1797 images of 32 x 32 pixels, one for each digit.

        image = (1 - a) background + a ink

    The opacity a is the digit's bitmap, resized bilinearly. The photographs are darkened, and the
    ink is lighter than the mean background by at least `CONTRAST` in each channel: over photographs
    at full brightness, networks that train as long as the demo's stay near chance (measured).

    seed: any integer; negative ones are taken modulo 2**64.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    bitmaps = digits.images.astype(np.int64)  # [N, 8, 8], 0..16
    labels = digits.target.astype(np.int64)
    draws = Draws(seed, len(labels))
    background = _backgrounds(draws) // DIMMING
    opacity, unit = digit_opacity(bitmaps, draws)
    colours = ink_colours(background.sum(axis=(1, 2)) // SIDE**2, draws)
    images = blend(background, opacity, unit, colours)
    return EmbeddedImages(images, labels, train_mask(labels), ATTRIBUTION)


def blend(
    background: Integers, opacity: Integers, unit: Integers, colours: Integers
) -> NDArray[np.uint8]:
    """Images [N, S, S, 3]: ink of colours [N, 3] over a background [N, S, S, 3], rounded.

    opacity, unit: as `digit_opacity` returns them.
    """
    shade = opacity[..., None]
    blended = (unit - shade) * background + shade * colours[:, None, None, :]
    return ((blended + unit // 2) // unit).astype(np.uint8)


class Draws:
    """A generator of random integers, `count` in each call, one for each image."""

    def __init__(self, seed: int, count: int) -> None:
        self._words = np.random.Philox(key=seed % 2**64)
        self.count = count

    def below(self, bound: int | Integers) -> Integers:
        """[N] integers, each uniform on 0..bound-1 (the bias of the remainder is < 1e-16)."""
        words = self._words.random_raw(self.count) >> np.uint64(1)
        return words.astype(np.int64) % bound


def _backgrounds(draws: Draws) -> Integers:
    """Windows [N, S, S, 3] of the photographs at random scales and positions, half mirrored."""
    from sklearn.datasets import load_sample_images

    sources = [_shrink(p, by) for p in load_sample_images().images for by in SHRINKS]
    source = draws.below(len(sources))
    heights = np.array([s.shape[0] for s in sources])[source]
    widths = np.array([s.shape[1] for s in sources])[source]
    top, left = draws.below(heights - SIDE + 1), draws.below(widths - SIDE + 1)
    mirrored = draws.below(2) == 1
    pixel = np.arange(SIDE)
    rows = top[:, None] + pixel  # [N, S]
    columns = left[:, None] + np.where(mirrored[:, None], pixel[::-1], pixel)
    windows = np.empty((draws.count, SIDE, SIDE, 3), dtype=np.int64)
    for which, picture in enumerate(sources):
        members = source == which
        windows[members] = picture[rows[members][:, :, None], columns[members][:, None, :]]
    return windows


def _shrink(picture: NDArray[np.uint8], by: int) -> Integers:
    """A picture [H, W, 3] at 1/by of its size, each pixel the mean of by x by."""
    height, width = picture.shape[0] // by, picture.shape[1] // by
    cells = picture[: height * by, : width * by].astype(np.int64)
    totals: Integers = cells.reshape(height, by, width, by, 3).sum(axis=(1, 3))
    return totals // by**2


def digit_opacity(
    bitmaps: Integers, draws: Draws, sides: tuple[int, int] = DIGIT_SIDES
) -> tuple[Integers, Integers]:
    """Opacity [N, S, S] of the digits, each in a random square box, and the value that is opaque.

    The resize is bilinear with pixel centres at half integers, zero outside the bitmap, in exact
    fractions: along one axis, pixel p has the position (8 (2 (p - start) + 1) - side) / (2 side)
    in bitmap cells; its floor is the cell, its remainder the weight of the next cell.

    sides: least and greatest side of a box, pixels.
    """
    least, greatest = sides
    side = least + draws.below(greatest - least + 1)
    row = _axis_weights(draws.below(SIDE - side + 1), side, bitmaps.shape[1])
    column = _axis_weights(draws.below(SIDE - side + 1), side, bitmaps.shape[2])
    opacity = row @ bitmaps @ column.transpose(0, 2, 1)
    unit = INK_LEVELS * (2 * side) ** 2
    return opacity, unit[:, None, None, None]


def _axis_weights(start: Integers, side: Integers, cells: int) -> Integers:
    """Bilinear weights [N, S, cells] along one axis, in units of 1 / (2 side)."""
    pixel = np.arange(SIDE)
    unit = 2 * side[:, None]
    position = cells * (2 * (pixel - start[:, None]) + 1) - side[:, None]  # [N, S], over `unit`
    cell, share = position // unit, position % unit
    index = np.arange(cells)
    here = index == cell[..., None]
    following = index == cell[..., None] + 1
    weights: Integers = here * (unit - share)[..., None] + following * share[..., None]
    return weights


def ink_colours(background: Integers, draws: Draws) -> Integers:
    """Colours [N, 3]; each channel is uniform from the background's plus CONTRAST to 255."""
    least = background + CONTRAST
    return np.stack([low + draws.below(256 - low) for low in least.T], axis=1)


def train_mask(labels: Integers) -> NDArray[np.bool_]:
    """A mask [N] that is False for every fifth digit of each class."""
    train = np.ones(len(labels), dtype=np.bool_)
    for label in np.unique(labels):
        train[np.flatnonzero(labels == label)[TEST_EVERY - 1 :: TEST_EVERY]] = False
    return train
