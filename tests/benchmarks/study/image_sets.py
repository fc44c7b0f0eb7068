"""Two labelled image sets made from scikit-learn's, in addition to `embedded_images`.

Results on one set may be chance. These sets have other classes: the regions of a photograph in
`textures`, of which augmentations remove much, and shapes without background in `plain_digits`. As
with `embedded_images`, a seed always gives the same bytes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lidar_cli.data.builtin import (
    ATTRIBUTION,
    SIDE,
    TEST_EVERY,
    Draws,
    EmbeddedImages,
    blend,
    digit_opacity,
    ink_colours,
    train_mask,
)

PLAIN_SIDES = (22, 30)  # least and greatest side of a digit's box, pixels: more room to move in
DARK = 64  # the background is below this in each channel
TILE = 20  # pixels; a window is inside a tile, so that windows of two tiles share no pixel
WINDOW = 16  # pixels of a photograph, shown at twice their size
REGION = (10, 8)  # rows and columns of tiles that form a class
WINDOWS = 2  # for each tile


def plain_digits(seed: int = 0) -> EmbeddedImages:
    """1797 images of a digit in one colour on a dark background of one colour; labels: the digits.

    Position, size and colours are drawn by seed; the ink is lighter than the background by at least
    `CONTRAST` in each channel. The split is that of `embedded_images`.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    labels = digits.target.astype(np.int64)
    draws = Draws(seed, len(labels))
    colour = np.stack([draws.below(DARK) for _ in range(3)], axis=1)  # [N, 3]
    opacity, unit = digit_opacity(digits.images.astype(np.int64), draws, PLAIN_SIDES)
    background = np.broadcast_to(colour[:, None, None, :], (len(labels), SIDE, SIDE, 3))
    images = blend(background, opacity, unit, ink_colours(colour, draws))
    return EmbeddedImages(images, labels, train_mask(labels), ATTRIBUTION)


def textures(seed: int = 0) -> EmbeddedImages:
    """2560 windows of the two photographs; labels: the region that a window is from.

    Of a photograph of 427 x 640 pixels, 20 x 32 tiles form 8 regions of 10 x 8 tiles: 16 classes in
    all. Every fifth tile of a region is a test tile. No pixel is in two tiles, so none is in both a
    training and a test image. A window has a random position in its tile and is scaled to twice its
    size. There are many small tiles, since windows of one tile are nearly the same image, both
    for a method that discriminates images and for a test of accuracy.
    """
    from sklearn.datasets import load_sample_images

    tiles, labels, train = [], [], []
    for number, photograph in enumerate(load_sample_images().images):
        down, across = (
            side // TILE // by for side, by in zip(photograph.shape, REGION, strict=False)
        )
        for row, column in np.ndindex(down * REGION[0], across * REGION[1]):
            region = (row // REGION[0]) * across + column // REGION[1]
            within = (row % REGION[0]) * REGION[1] + column % REGION[1]
            top, left = row * TILE, column * TILE
            tiles.append(photograph[top : top + TILE, left : left + TILE])
            labels.append(number * across * down + region)
            train.append(within % TEST_EVERY != TEST_EVERY - 1)
    return EmbeddedImages(
        _windows(np.stack(tiles).repeat(WINDOWS, axis=0), seed),
        np.array(labels, np.int64).repeat(WINDOWS),
        np.array(train).repeat(WINDOWS),
        ATTRIBUTION,
    )


def _windows(tiles: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """Windows [N, S, S, 3], one of each tile [N, T, T, 3], scaled by repeating pixels."""
    draws = Draws(seed, len(tiles))
    top, left = draws.below(TILE - WINDOW + 1), draws.below(TILE - WINDOW + 1)
    pixel = np.arange(SIDE) // (SIDE // WINDOW)
    rows, columns = top[:, None] + pixel, left[:, None] + pixel  # [N, S]
    image = np.arange(len(tiles))[:, None, None]
    windows: NDArray[np.uint8] = tiles[image, rows[:, :, None], columns[:, None, :]]
    return windows
